"""`hanmo plan` tells what fits, recommends one way and says in numbers why Adam does not."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from hanmo.cli.app import app

INDEX = "mega-bert-tok-tf_model.ckpt-100000.index"


def run(*args: object):
    return CliRunner().invoke(app, ["plan", *map(str, args)])


@pytest.fixture
def prefix(data, tmp_path):
    for file in (data / "goldens" / "gpt2_ml").glob("model.ckpt.*"):
        shutil.copy(file, tmp_path)
    shutil.copy(data / "goldens" / "gpt2_ml" / "config.json", tmp_path)
    return tmp_path / "model.ckpt"


def of(told, **wanted):
    """The one plan of the table with these choices."""
    found = [p for p in told["plans"] if all(p["choice"][key] == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("first", ["float32", "mixed"])
def test_json_tells_every_way_and_recommends_one(indexes, monkeypatch, first):
    monkeypatch.setattr("hanmo.cores.has_fast_bfloat16", lambda: first == "mixed")
    result = run("--model", indexes / INDEX, "--memory", "22GiB", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert (told["parameters"], told["memory"], len(told["plans"])) == (1_393_944_576, 22 * 2**30, 24)
    plain = of(told, optimizer="adamw", precision="float32", in_backward=False, recompute=False)
    assert not plain["fits"]
    assert round(plain["static"] / 2**30, 2) == 20.77
    assert plain["needed"] > 22 * 2**30
    freed = of(told, optimizer="adamw", precision="float32", in_backward=True, recompute=True)
    assert freed["fits"]
    assert round(freed["static"] / 2**30, 2) == 15.58
    small = of(told, optimizer="adafactor-gpt2-ml", precision="bfloat16", in_backward=True, recompute=True)
    assert small["static"] < 2.7 * 2**30
    assert told["recommended"]["choice"]["precision"] == first
    assert told["recommended"]["needed"] < 22 * 2**30
    assert list(told["largest_batch"]) == ["256", "512", "1024"]


def test_plain_adam_is_said_not_to_fit_in_numbers(indexes):
    small = run("--model", indexes / INDEX, "--memory", "22GB").stdout
    assert "memory 20.49 GiB" in small
    assert (
        "Adam does not fit, whatever the batch: weights 5.19 GiB + gradients 5.19 GiB + two moments 10.39 GiB = "
        "20.77 GiB, more than 20.49 GiB. With update in backward it has 15.58 GiB static"
    ) in small
    large = run("--model", indexes / INDEX, "--memory", "22GiB").stdout
    assert "= 20.77 GiB, and " in large
    assert "of 22.00 GiB" in large
    assert "Adam fits" in run("--model", indexes / INDEX, "--memory", "40GiB").stdout


@pytest.mark.parametrize(
    ("first", "memory", "wanted"),
    [("float32", "8GiB", "float32"), ("float32", "4.5GiB", "bfloat16"), ("mixed", "9GiB", "mixed")],
)
def test_small_memories_are_recommended_update_in_backward(indexes, monkeypatch, first, memory, wanted):
    monkeypatch.setattr("hanmo.cores.has_fast_bfloat16", lambda: first == "mixed")
    choice = f"Recommended: adafactor-gpt2-ml, {wanted}, update in backward, recomputation, sequence 1,024, batch 1;"
    assert choice in run("--model", indexes / INDEX, "--memory", memory).stdout


def test_where_nothing_fits_adapters_are_tried(indexes):
    result = run("--model", indexes / INDEX, "--memory", "2900MiB")
    assert result.exit_code == 0
    assert "Nothing here fits" in result.stdout
    assert "LoRA of rank 8, bfloat16" in result.stdout
    assert "does not fit either" in run("--model", indexes / INDEX, "--memory", "1GiB").stdout
    assert json.loads(run("--model", indexes / INDEX, "--memory", "1GiB", "--json").stdout)["recommended"] is None


def test_a_folder_and_its_checkpoint_are_planned_alike(prefix):
    one, other = (run("--model", path, "--memory", "1GiB") for path in (prefix, prefix.parent))
    assert one.exit_code == other.exit_code == 0
    assert one.stdout.splitlines()[1:] == other.stdout.splitlines()[1:]
    assert "Adam fits" in one.stdout


def test_without_a_size_what_is_free_is_planned_for(prefix):
    told = json.loads(run("--model", prefix, "--json").stdout)
    assert told["memory"] > 2**26
    assert of(told, optimizer="adamw", precision="float32", in_backward=False, recompute=False)["fits"]


def test_adapters_and_other_lengths_change_the_plan(prefix):
    whole = json.loads(run("--model", prefix, "--memory", "1GiB", "--json").stdout)
    adapters = json.loads(run("--model", prefix, "--memory", "1GiB", "--lora", 2, "--json").stdout)
    short = json.loads(run("--model", prefix, "--memory", "1GiB", "--sequence", 4, "--json").stdout)
    assert adapters["plans"][0]["gradients"] < whole["plans"][0]["gradients"]
    assert short["plans"][0]["activations"] < whole["plans"][0]["activations"]


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--memory", "much"], "--memory is 'much'; expected a size such as 22GiB"),
        (["--memory", "1GiB", "--sequence", "99999"], "--sequence is 99999; this model knows"),
        (["--memory", "1GiB", "--device", "tpu"], "--device is 'tpu'; expected one of cpu, cuda"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_line(prefix, args, match):
    result = run("--model", prefix, *args)
    assert result.exit_code == 1
    assert match in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    result = run("--model", tmp_path / "nothing.index", "--memory", "1GiB")
    assert result.exit_code == 1
    assert "nothing" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_here_needs_its_memory_told(prefix):
    result = run("--model", prefix, "--device", "cuda")
    assert (result.exit_code, "say what the GPU has, as in --memory 22GiB" in result.stderr) == (1, True)
    assert "mixed" in run("--model", prefix, "--device", "cuda", "--memory", "1GiB").stdout


def test_planning_imports_no_torch(prefix):
    code = (
        "import sys; from typer.testing import CliRunner; from hanmo.cli.app import app\n"
        f"result = CliRunner().invoke(app, ['plan', '--model', {str(prefix)!r}, '--memory', '1GiB'])\n"
        "assert result.exit_code == 0, result.output\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
