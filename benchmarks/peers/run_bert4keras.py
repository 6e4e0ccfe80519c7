"""Run a script with bert4keras 0.11.5 under tensorflow-cpu 2.15.1, in their own environment.

    python run_bert4keras.py SCRIPT ARGS…

bert4keras puts the lazy `tf.keras` into sys.modules, from which TensorFlow 2.15 lets nothing be imported; here the
concrete modules take its place first. Nothing of bert4keras itself is changed.
"""

import importlib
import os
import runpy
import sys

os.environ["TF_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

SUBMODULES = (
    "activations", "backend", "callbacks", "constraints", "initializers", "layers", "losses", "metrics", "models",
    "optimizers", "preprocessing", "regularizers", "utils",
)  # fmt: skip


def stand_in() -> None:
    """Have `import keras` give tf.keras's modules."""
    import keras as installed
    import tensorflow

    concrete = importlib.import_module("keras.api._v2.keras")
    concrete.__version__ = installed.__version__
    tensorflow.keras = concrete
    sys.modules["keras"] = concrete
    for name in SUBMODULES:
        sys.modules[f"keras.{name}"] = getattr(concrete, name)


if __name__ == "__main__":
    stand_in()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
