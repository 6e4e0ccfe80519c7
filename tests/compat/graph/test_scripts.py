"""`hanmo run` gives Keras to scripts that need it, leaves Keras itself as it is, and names the way in one line."""

import re
import subprocess
import sys

import keras
import pytest
from typer.testing import CliRunner

from hanmo.cli.app import app
from hanmo.compat.bert4keras._script import check_script, run_script

TRAINS = """
import numpy as np
import tensorflow as tf
from bert4keras.backend import keras, K
from bert4keras.models import build_transformer_model
from bert4keras.optimizers import Adam, extend_with_weight_decay
from bert4keras.snippets import DataGenerator
from keras.layers import Dense, Lambda

class Rows(DataGenerator):
    def __iter__(self, random=False):
        for _, (ids, label) in self.sample(random):
            yield ([ids, [0] * len(ids)], [[label]])

with tf.distribute.MirroredStrategy().scope():
    bert = build_transformer_model('CONFIG', return_keras_model=False, num_hidden_layers=1)
    output = Lambda(lambda x: x[:, 0])(bert.model.output)
    output = Dense(2, activation='softmax', kernel_initializer=bert.initializer, name='Probas')(output)
    model = keras.models.Model(bert.model.input, output)
    AdamW = extend_with_weight_decay(Adam, name='AdamW')
    model.compile(loss='sparse_categorical_crossentropy', optimizer=AdamW(1e-2), metrics=['accuracy'])
    model.summary()
dataset = Rows([([2, 5 + i % 2, 3][: 3 - i % 2], i % 2) for i in range(8)], 4).to_dataset(
    types=[('float32', 'float32'), ('float32',)],
    shapes=[([None], [None]), ([1],)],
    names=[('Input-Token', 'Input-Segment'), ('Probas',)],
    padded_batch=True,
)
losses = model.fit(dataset, steps_per_epoch=4, epochs=4, verbose=0).history['loss']
print('falls', losses[-1] < 0.5 * losses[0], K.__name__)
"""


@pytest.fixture
def script(tmp_path):
    def write(text, name="script.py"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write


def hanmo_run(*arguments):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def test_a_script_trains_from_a_dataset_under_a_strategy(script, data, caplog):
    path = script(TRAINS.replace("CONFIG", str(data / "goldens" / "bert" / "config.json")))
    assert [each.text for each in check_script(path) if not each.supported] == []
    done = hanmo_run(path)
    assert done.exit_code == 0 and done.stdout.endswith("falls True keras.backend\n")
    assert "Transformer-0-FeedForward-Norm" in done.stdout
    assert "MirroredStrategy runs on one device here" in caplog.text + done.stderr


def test_keras_itself_stays_as_it_is(script):
    before = {name: id(module) for name, module in sys.modules.items() if name.split(".")[0] == "keras"}
    held = keras.Model, keras.backend, keras.layers.Dense
    text = "import keras\nfrom tensorflow.keras.models import Model\nkeras.layers.Dense(2)\nassert keras.Model is Model"
    run_script(script(text + "\nfrom keras.engine.topology import Layer\nassert Layer is keras.layers.Layer"))
    assert held == (keras.Model, keras.backend, keras.layers.Dense)
    after = {name: id(module) for name, module in sys.modules.items() if name.split(".")[0] == "keras"}
    assert before.items() <= after.items() and "tensorflow" not in sys.modules


def test_a_script_needs_keras_where_one_in_its_folder_does(script):
    script("from keras.layers import Dense\nlayer = Dense(2)", "layer_beside.py")
    path = script("from layer_beside import *\nprint(type(layer).__module__)")
    assert hanmo_run(path).stdout == "keras.src.layers.core.dense\n"


def test_check_lists_what_files_in_the_folder_lack(script):
    script("import tensorflow as tf\ndef load(names):\n    return tf.data.TFRecordDataset(names)", "data_utils.py")
    done = hanmo_run("--check", script("import numpy\nfrom data_utils import *\nload([])"))
    assert (
        done.exit_code == 1 and ":2: not supported: data_utils.py:3: tensorflow.data.TFRecordDataset: " in done.stdout
    )


def test_a_script_that_only_predicts_does_not_import_keras(script):
    text = "import sys, keras\nfrom bert4keras.layers import Loss\nprint('keras.src' in sys.modules, keras.__version__)"
    command = [sys.executable, "-m", "hanmo.cli", "run", str(script(text))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False 2.3.1\n", done.stderr
    assert hanmo_run("--keras", script(text)).stdout == f"True {keras.__version__}\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("K.ctc_batch_cost", 4, "K.ctc_batch_cost is not supported"),
        ("Lambda(lambda x: K.ctc_batch_cost(x))(keras.Input((3,)))", 4, "K.ctc_batch_cost is not supported"),
        (
            "import tensorflow as tf\ntf.config.set_x(1)",
            5,
            "config.set_x .* with `hanmo pack` and `hanmo pretrain`",
        ),
        (
            "import tensorflow as tf\ntf.distribute.TPUStrategy(1)",
            5,
            "distribute.TPUStrategy is not supported",
        ),
        ("import tensorflow.data", 4, "the module tensorflow.data is not supported"),
        (
            "from bert4keras.models import BERT\nclass My(BERT): pass",
            5,
            "BERT is not supported: .* apply_main_layers",
        ),
        ("import keras.preprocessing.text", 4, "Keras 3 has no module keras.preprocessing.text"),
        ("build_transformer_model(model='bert', layers={1: 2})", 4, "layers is set: layers of another Keras model"),
    ],
)
def test_what_is_not_supported_is_one_line_with_the_scripts(script, text, line, says):
    head = "from bert4keras.backend import keras, K\nfrom bert4keras.models import build_transformer_model\n"
    path = script(f"{head}from keras.layers import Lambda; Lambda(abs)\n{text}\n")
    done = hanmo_run(path)
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"hanmo: {path}:{line}: ")
    assert re.search(says, done.stderr)


def test_a_scripts_own_error_over_one_of_ours_is_its_own(script):
    text = "from keras.layers import Lambda\nLambda(abs)\nfrom bert4keras.backend import K\n"
    path = script(text + "try:\n    K.ctc_batch_cost\nexcept NotImplementedError:\n    raise OSError('mine')\n")
    done = hanmo_run(path)
    assert done.exit_code == 1 and done.stderr.splitlines()[-1] == "OSError: mine"
