"""Commands that are killed at random moments and given again end with the bytes of one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
KILLS = int(os.environ.get("HANMO_KILLS", 5))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + number) for number in range(115))]

# Imports take longer than most commands here: one process has done them, and a copy of it does each command.
NURSERY = """
import json, os, signal, sys, time, traceback
import torch, torch._dynamo, openvino
import hanmo.cli.app, hanmo.cli.batch, hanmo.batch.cluster, hanmo.batch.work, hanmo.inference.openvino.build
import hanmo.finetune
import hanmo.inference.prefix_cache
from pathlib import Path
from hanmo.inference.openvino.engine import open_weights

torch.set_num_threads(1)
for line in sys.stdin:
    arguments, seconds = json.loads(line)
    child, begun = os.fork(), time.monotonic()
    if not child:
        sys.argv = ["hanmo", *arguments]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            if arguments[0] == "build":
                open_weights(Path(arguments[1]), weights=arguments[2])
            else:
                hanmo.cli.app.run()
            os._exit(0)
        except SystemExit as ended:
            os._exit(ended.code or 0)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    status = 0, 0
    while not status[0]:
        if time.monotonic() - begun > seconds:
            os.kill(child, signal.SIGKILL)
            seconds = float("inf")
        time.sleep(0.001)
        status = os.waitpid(child, os.WNOHANG)
    print(json.dumps([os.waitstatus_to_exitcode(status[1]), time.monotonic() - begun]), flush=True)
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """Give a function that does a command, and kills it after some seconds: (exit code, seconds)."""
    folder = tmp_path_factory.mktemp("nursery")
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with (
        (folder / "stderr").open("w+") as told,
        subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            env=environment,
        ) as process,
    ):

        def do(arguments, seconds=1e9):
            process.stdin.write(json.dumps([[str(each) for each in arguments], seconds]) + "\n")
            process.stdin.flush()
            code, took = json.loads(process.stdout.readline())
            if code not in (0, -signal.SIGKILL):
                raise AssertionError(f"{arguments} ended with {code}: {(folder / 'stderr').read_text()[-3000:]}")
            return code, took

        do.cache = folder / "cache" / "hanmo"
        yield do
        process.stdin.close()


@pytest.fixture
def model(tmp_path):
    folder = shutil.copytree(GOLDENS / "gpt2_ml_original", tmp_path / "model")
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in WORDS), "utf-8")
    return folder


def write(kind, model, out):
    chance = random.Random(1)
    prompts = ["".join(chance.choices(WORDS[5:], k=chance.randint(1, 24))) for _ in range(60)]
    (model / "prompts.txt").write_text("\n".join(prompts) + "\n", "utf-8")
    options = ["--weights", kind, "--seed", "7", "--batch", "3", "--max-chars", "12", "--min-chars", "0"]
    return ["write", "--file", model / "prompts.txt", "--out", out / "results.jsonl", "--model", model, *options]


def finetune(kind, model, out):
    if any(out.glob("last-*")):
        return ["finetune", "--out", out, "--resume"]
    chance = random.Random(2)
    lines = ["".join(chance.choices(WORDS[5:], k=30)) for _ in range(40)]
    (model / "text.txt").write_text("\n".join(lines) + "\n", "utf-8")
    options = ["--document", "line", "--steps", "24", "--evaluate-every", "4", "--sequence", "16", "--batch", "2"]
    options += ["--precision", kind, "--seed", "3", "--device", "cpu", "--average", "0.9"]
    return ["finetune", "--model", model, "--data", model / "text.txt", "--out", out, *options]


def convert(kind, model, out):
    form = ["tensorflow"] if kind == "float32" else ["safetensors", "--dtype", kind]
    return ["convert", model, out, "--to", *form]


def build(kind, model, out):
    return ["build", model, kind]


def tree(out):
    """Give what is in a folder by name, without what differs between any two runs: times."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or path.suffix in (".pt", ".svg"):
            found[name] = b""
        elif path.name == "log.jsonl":
            records = map(json.loads, path.read_text("utf-8").splitlines())
            found[name] = [
                {key: value for key, value in record.items() if key not in ("seconds", "tokens_per_second")}
                for record in records
            ]
        elif path.name == "options.json" or (path.suffix == ".json" and (path.with_suffix(".safetensors")).exists()):
            found[name] = sorted(json.loads(path.read_text("utf-8")))
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *((command, kind) for command in (write, convert, build) for kind in ("float32", "int8")),
        *((finetune, kind) for kind in ("float32", "bfloat16")),
    ],
)
def test_a_command_that_is_killed_at_random_moments_ends_as_one_that_never_was(nursery, model, tmp_path, command, kind):
    if command is write:
        nursery(build("int8", model, tmp_path))  # which is not to be part of it
    out = nursery.cache if command is build else tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    _, took = nursery(command(kind, model, out))
    whole, beside = tree(out), names(out.parent)
    assert whole
    shutil.rmtree(out)
    chance, kills, lives, code = random.Random(f"{command.__name__} {kind}"), 0, 0, 1
    while kills < KILLS or code:
        code, _ = nursery(command(kind, model, out), chance.uniform(0, took) if kills < KILLS else 1e9)
        kills, lives = kills + (code != 0), lives + 1
        assert lives < 20 * KILLS
        if code == 0:
            assert tree(out) == whole and names(out.parent) == beside
        if code == 0 or (command is convert and out.exists()):  # which is whole as soon as it is there
            assert tree(out) == whole
            shutil.rmtree(out)
    print(f"{command.__name__} {kind}: {kills} kills in {lives} lives, {took:.1f} s without any")


def names(folder):
    return sorted(path.name for path in folder.iterdir())
