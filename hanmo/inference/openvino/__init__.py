"""Decoding and encoding on a CPU with OpenVINO."""
