"""Decoding and encoding on a CPU with OpenVINO."""

import sys

# By this package OpenVINO reports to Google that it was imported, and writes an id into the home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
