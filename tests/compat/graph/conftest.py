"""Keras computes with torch."""

import os

os.environ["KERAS_BACKEND"] = "torch"
