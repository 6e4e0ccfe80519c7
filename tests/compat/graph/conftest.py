"""Keras computes with torch; tests in the place of scripts import the names that scripts import."""

import os
import warnings

import pytest

os.environ["KERAS_BACKEND"] = "torch"


@pytest.fixture
def as_script():
    """Serve bert4keras and Keras, and ignore Keras's warnings, as `hanmo run` does; random numbers repeat."""
    import keras

    from hanmo.compat.bert4keras._script import keras_face, served

    with warnings.catch_warnings(), served(keras_face()):
        warnings.filterwarnings("ignore", category=UserWarning, module=r"keras\.src\.")
        keras.utils.set_random_seed(0)
        yield
