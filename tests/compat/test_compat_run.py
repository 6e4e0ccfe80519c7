"""`hanmo run`: old names give our modules, errors of a script are its own, unsupported names are listed by line."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import hanmo.compat.bert4keras.models as ours
from hanmo.cli.app import app
from hanmo.compat.bert4keras import _script, backend
from hanmo.compat.bert4keras._modules import find_module
from hanmo.compat.bert4keras._script import check_script, run_script, served
from hanmo.errors import MissingExtra, Unsupported
from hanmo.model_pipeline import ModelPipeline

ROOT = Path(__file__).parents[2]

TOKENS = [np.array([[2, 5, 6, 3]]), np.zeros((1, 4), int)]


@pytest.fixture
def build(data):
    def build(kind="bert", **arguments):
        folder = data / "goldens" / kind
        return ours.build_transformer_model(str(folder / "config.json"), str(folder / "model.ckpt"), **arguments)

    return build


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text, "utf-8")
        return path

    return write


def hanmo_run(*arguments):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


# --- names


def test_old_names_are_the_same_modules_even_beside_an_installed_bert4keras(tmp_path, script):
    for name in ("bert4keras", "keras"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemError('the real one')")
    before = set(sys.modules)
    run_script(
        script(
            "import bert4keras, bert4keras.models as old, keras, uniout\n"
            "import hanmo.compat.bert4keras.models as new\n"
            "from keras.engine.topology import Layer\n"
            "from keras.layers import *\n"
            "from bert4keras.layers import *\n"
            "assert old is new is bert4keras.models and bert4keras.__version__ == '0.11.5'\n"
            "assert new.__spec__.name == 'hanmo.compat.bert4keras.models'\n"
            "assert old.keras is keras and keras.models is __import__('keras.models').models\n"
        )
    )
    assert not [name for name in {*sys.modules} - before if name.split(".")[0] in ("bert4keras", "keras", "uniout")]


def test_modules_that_were_imported_before_come_back():
    before = sys.modules["keras"] = find_module("keras.models")
    try:
        with served():
            import keras  # noqa: F401

            assert sys.modules["keras"] is not before
        assert sys.modules["keras"] is before
    finally:
        del sys.modules["keras"]


def test_a_script_sees_what_python_would_show_it(script, capsys):
    path = script("import sys, beside\nprint(__name__, __file__, sys.argv, beside.X, '__main__' in sys.modules)")
    (path.parent / "beside.py").write_text("X = 5")
    before = sys.argv, sys.path[:], sys.modules["__main__"]
    run_script(path, ["--steps", "3"])
    assert capsys.readouterr().out == f"__main__ {path} ['{path}', '--steps', '3'] 5 True\n"
    assert (sys.argv, sys.path, sys.modules["__main__"]) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import bert4keras.bert", "bert4keras.bert is not supported; in 0.11.5 it is bert4keras.models"),
        (
            "from bert4keras.nothing import x",
            "bert4keras.nothing is not supported; these are: ",
        ),
        ("import keras\nkeras.layers.Dense(5)", r"keras.layers.Dense is not supported: .*pip install 'hanmo\[keras\]'"),
        ("from keras.layers import Layer\nclass Mine(Layer): pass", "keras.layers.Layer is not supported"),
        ("from bert4keras.backend import K\nK.mean(3)", r"backend.K.mean is not supported"),
        ("from bert4keras.models import BERT\nBERT['x']", "models.BERT is not supported"),
        ("from bert4keras.models import BERT\nlist(BERT)", "models.BERT is not supported"),
        ("from bert4keras.optimizers import AdaFactor\nAdaFactor(1e-3)", r"AdaFactor is not supported"),
    ],
)
def test_what_is_not_supported_without_keras_fails_at_once_and_names_the_way(script, text, says):
    with pytest.raises(Unsupported, match=says):
        run_script(script(text), keras=False)


@pytest.mark.parametrize("module", ["backend", "layers", "models", "optimizers"])
def test_names_that_bert4keras_never_had_are_no_names(script, module):
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        run_script(script(f"from bert4keras.{module} import nothing"), keras=False)


@pytest.mark.parametrize("name", ["fit", "compile", "fit_generator", "train_on_batch", "evaluate"])
def test_training_a_model_needs_keras(build, name):
    with pytest.raises(Unsupported, match=r"fitting a model is not supported: it is Keras's; .*pip install"):
        getattr(build(), name)(TOKENS)


def test_tensors_of_keras_need_keras(build):
    model = build()
    for use in (lambda: model(TOKENS), lambda: model.output[:, 0], lambda: model.get_layer("Embedding-Norm").output()):
        with pytest.raises(Unsupported, match=r"hanmo\[keras\]"):
            use()


@pytest.mark.parametrize("installed", [None, "2.15.0", "3.9.2", "4.0.0"])
def test_a_script_that_needs_keras_names_the_extra_and_the_line_where_no_fitting_one_is_installed(
    script, monkeypatch, installed
):
    def version(name):
        assert name == "keras"
        if installed is None:
            raise _script.importlib.metadata.PackageNotFoundError
        return installed

    monkeypatch.setattr(_script.importlib.metadata, "version", version)
    path = script("import numpy\nfrom keras.layers import Dense\n\nprint('ran')\nDense(5)")
    with pytest.raises(MissingExtra, match=r"script.py:5: keras.layers.Dense needs .*pip install 'hanmo\[keras\]'"):
        run_script(path)
    assert [each.line for each in check_script(path) if not each.supported] == [5]
    done = hanmo_run(path)
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1


# --- the command


def test_a_script_ends_with_its_own_exit_code_and_output(script):
    done = hanmo_run(script("import sys\nprint(sys.argv[1:])\nsys.exit(7)"), "--check", "-x", "天")
    assert (done.exit_code, done.stdout) == (7, "['--check', '-x', '天']\n")


def test_a_scripts_error_has_its_own_traceback(script, capsys):
    path = script("def f():\n    open('/nonexistent')\nf()\n")
    done = hanmo_run(path)
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[1] == f'  File "{path}", line 3, in <module>'
    assert lines[-1].startswith("FileNotFoundError") and "hanmo/cli" not in done.stderr


def test_a_mistake_in_its_syntax_is_shown_as_python_does(script):
    done = hanmo_run(script("x = 1\nprint 5\n"))
    assert done.exit_code == 1 and "line 2" in done.stderr and "SyntaxError" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_hanmos_is_one_line_with_the_scripts(script):
    path = script("from keras.layers import Dense\ndef f():\n    Dense(5)\nf()\n")
    done = hanmo_run("--no-keras", path)
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"hanmo: {path}:3: keras.layers.Dense is not supported")
    debugged = CliRunner().invoke(app, ["--debug", "run", "--no-keras", str(path)])
    assert debugged.exit_code == 1 and "Traceback" in debugged.stderr and "Unsupported" in debugged.stderr


def test_a_script_that_is_not_there_is_one_line(tmp_path):
    for options in ([], ["--check"]):
        done = hanmo_run(*options, tmp_path / "nothing.py")
        assert done.exit_code == 1 and done.stderr.startswith("hanmo: no script at ") and done.stderr.count("\n") == 1


def test_weights_and_threads_are_set_before_the_script_runs(script):
    import torch

    threads = torch.get_num_threads()
    try:
        text = (
            "import torch\nfrom bert4keras import backend\nprint(backend.get_weights_dtype(), torch.get_num_threads())"
        )
        done = hanmo_run("--weights", "bfloat16", "--threads", 1, script(text))
    finally:
        backend.set_weights_dtype(None)
        torch.set_num_threads(threads)
    assert done.stdout == "bfloat16 1\n"


# --- reading without running

TRAINING_SCRIPT = """\
import tensorflow as tf
from keras.layers import Dense, Input
from bert4keras.backend import keras, K, set_gelu
from bert4keras.models import build_transformer_model
from bert4keras.optimizers import *
from bert4keras.layers import *
from bert4keras.snippets import AutoRegressiveDecoder, sequence_padding, nothing
from bert4keras.bert import build_bert_model
import re
set_gelu('tanh')
re.compile('x')
bert = build_transformer_model('c', 'm', with_pool=True, layers=x, sequence_length=5, return_keras_model=False)
output = Dense(2)(bert.model.output)
model = keras.models.Model(bert.model.inputs, output)
model.compile(loss='x', optimizer=keras.optimizers.Adam(1e-5))
class Mine(Lambda): pass
sequence_padding([[1]], length=5, wrong=1)
AutoRegressiveDecoder.set_rtype('probas')
AutoRegressiveDecoder.set_kind('probas')
bert.model.invented()
model.predict(x)
other.fit_generator(x)
"""


def test_check_lists_what_is_not_supported_by_line(script):
    path = script(TRAINING_SCRIPT)
    findings = check_script(path, keras=False)
    wrong = {(each.line, each.text.split(":")[0]) for each in findings if not each.supported}
    assert wrong == {
        (1, "tensorflow"),
        (7, "bert4keras.snippets.nothing"),
        (8, "the module bert4keras.bert is not supported; in 0.11.5 it is bert4keras.models, where "
            "build_transformer_model builds what build_bert_model did"),
        (12, "layers="),
        (13, "bert4keras.layers.Dense"),
        (15, "model.compile"),
        (15, "keras.optimizers.Adam"),
        (16, "bert4keras.layers.Lambda"),
        (17, "wrong="),
        (19, "bert4keras.snippets.AutoRegressiveDecoder.set_kind"),
        (20, "bert.model.invented"),
        (22, "other.fit_generator"),
    }  # fmt: skip
    right = {(each.line, each.text) for each in findings if each.supported}
    assert right > {
        (10, "bert4keras.backend.set_gelu"),
        (12, "sequence_length= is ignored"),
        (18, "bert4keras.snippets.AutoRegressiveDecoder.set_rtype"),
        (21, "model.predict"),
    }
    done = hanmo_run("--check", "--no-keras", path)
    assert done.exit_code == 1 and f"{path}:15: not supported: model.compile: it is Keras's" in done.stdout
    assert done.stderr == f"hanmo: {len(right)} supported, {len(wrong)} not\n"


def test_check_of_a_script_that_only_predicts_is_content(script):
    path = script("from bert4keras.models import build_transformer_model as b\nm = b('c', 'p')\nm.predict([[1]])")
    done = hanmo_run("--check", path)
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == f"{path}:3: m.predict"
    done = hanmo_run("--check", script("print(5)"))
    assert (done.exit_code, done.stdout) == (0, "") and "uses nothing of bert4keras" in done.stderr


def test_check_says_where_a_script_is_no_python_3(script):
    with pytest.raises(Unsupported, match=r"script.py:2: .*is it Python 2"):
        check_script(script("x = 1\nprint 5\n"))


def test_the_page_on_bert4keras_names_what_is_there():
    page = (ROOT / "docs" / "from-bert4keras.md").read_text("utf-8")
    old = re.findall(r"`(models|snippets|tokenizers|backend|optimizers)\.(\w+)`", page)
    for module, name in old:
        assert getattr(find_module(f"bert4keras.{module}"), name) is not None
    ours = re.findall(r"`loaded\.(\w+)", page)
    for name in ours:
        assert name in ("model", "tokenizer") or callable(getattr(ModelPipeline, name))
    for name in re.findall(r"of `(hanmo[\w.]+)`", page):
        assert importlib.util.find_spec(name) is not None
    assert len(old) > 8 and len(ours) > 8
    fit = next(line for line in page.splitlines() if "`model.fit`" in line)
    assert "`hanmo finetune --data" in fit and "not there yet" not in page
