"""An engine over a checkpoint in one call."""

from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights


def open_engine(path, *, weights="int8", mask=None, threads=None, **given):
    return OpenVinoEngine(open_weights(path, weights=weights, **given), mask=mask, threads=threads)
