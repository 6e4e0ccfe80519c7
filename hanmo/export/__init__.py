"""Folders for other programs."""

import hanmo.inference.openvino  # noqa: F401  before openvino.py imports OpenVINO
