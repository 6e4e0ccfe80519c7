"""A run that is killed again and again ends as one that never was; a full disk costs nothing that was saved."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hanmo.errors import CheckpointError
from hanmo.training.checkpoints import fill_from, newest, read_state, recover, save_checkpoint
from hanmo.training.loop import fit

KILLS = 20
NURSERY = """
import os
import sys
import time
import traceback
import numpy as np
import torch
import torch._dynamo
import torch._dynamo.eval_frame
torch.set_num_threads(1)
from pathlib import Path
from hanmo.config import ModelConfig
from hanmo.model import Model
from hanmo.training.loop import fit
from hanmo.training import Settings

class Draws:
    def batches(self, epoch=0, step=0):
        while True:
            for number in range(step, 7):
                time.sleep(PAUSE)
                yield epoch, number, np.random.default_rng([epoch, number]).integers(1, 40, size=(3, 9))
            epoch, step = epoch + 1, 0

def evaluate(model):
    return {"bits_per_character": float(model.token.weight.detach().square().mean())}

def live(out, steps):
    config = ModelConfig.from_json((out.parent / "hanmo.json").read_text("utf-8"))
    settings = Settings(steps=steps, optimizer="adamw", lr=3e-3, warmup=4, average=0.9, average_every=2, seed=3,
                        accumulate=2, recompute=True, evaluate_every=7, save_every=3, log_every=2)
    fit(Model(config).initialize(0), Draws(), out=out, settings=settings, evaluate=evaluate,
        sample=lambda model: str(float(model.token.weight.detach()[3, 3])), resume=True)

for line in sys.stdin:  # a life for each line: importing torch takes longer than many a life
    out, steps, PAUSE = line.split()
    PAUSE = float(PAUSE)
    child = os.fork()
    if not child:
        try:
            live(Path(out), int(steps))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def records(out: Path) -> list[dict]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    for record in found:
        record.pop("seconds", None), record.pop("tokens_per_second", None)
    return found


@pytest.mark.slow
def test_killed_twenty_times_it_ends_as_if_it_never_was(tmp_path: Path) -> None:
    from test_training_loop import config

    steps, dice = 120, random.Random(7)
    (tmp_path / "hanmo.json").write_text(config().to_json(), "utf-8")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nursery:

        def begin(out: Path, pause: float) -> int:
            nursery.stdin.write(f"{out} {steps} {pause}\n")
            nursery.stdin.flush()
            return int(nursery.stdout.readline())

        begin(whole, 0.0)
        assert int(nursery.stdout.readline()) == 0
        for _ in range(KILLS):
            before, deadline = newest(cut, "last"), time.monotonic() + 60
            process = begin(cut, 0.02)
            while newest(cut, "last") == before:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(dice.random() * 0.12)  # there is a new checkpoint: from here on any moment will do
            os.kill(process, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == signal.SIGKILL
            read_state(newest(cut, "last"))
            assert load_file(newest(cut, "last") / "model.safetensors")
        assert newest(cut, "last").name < f"last-{steps:08d}"
        begin(cut, 0.0)
        assert int(nursery.stdout.readline()) == 0
        nursery.stdin.close()

    assert records(cut) == records(whole)
    assert (cut / "samples.txt").read_bytes() == (whole / "samples.txt").read_bytes()
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())
    for kind in ("last", "best"):
        ours, theirs = (newest(out, kind) for out in (cut, whole))
        assert ours.name == theirs.name
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    ours, theirs = (read_state(newest(out, "last")) for out in (cut, whole))
    for state in (ours, theirs):
        state["place"].pop("seconds")
    assert ours["place"] == theirs["place"]
    for key in ("average", "generators"):
        one, two = ours[key], theirs[key]
        one, two = (one["averages"], two["averages"]) if key == "average" else (one, two)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) and len(one) > 0


def test_what_a_kill_left_behind_is_put_right(tmp_path: Path) -> None:
    from test_training_loop import model

    kept = save_checkpoint(tmp_path, "last", 5, model())
    kept.rename(tmp_path / ".last-00000005.0123456789ab.old")
    (tmp_path / ".best-00000007.0123456789ab.partial").mkdir()
    (tmp_path / "..best-00000007.0123456789ab.partial.ba9876543210.old").mkdir()
    (tmp_path / ".mine-00000007.0123456789ab.partial").mkdir()
    recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine-00000007.0123456789ab.partial", "last-00000005"]
    fill_from(model(1), kept)


def test_a_full_disk_is_one_error_and_what_was_saved_stands(tmp_path: Path) -> None:
    from test_training_loop import Counting, evaluate, model, records, settings

    whole = model()
    fit(whole, Counting(), out=tmp_path / "whole", settings=settings(), evaluate=evaluate)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(model) -> dict[str, float]:
        if newest(tmp_path / "cut", "last") is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return evaluate(model)

    try:
        with pytest.raises(
            CheckpointError, match=r"cut could not be written to .*last-00000005 is complete: free space"
        ):
            fit(model(), Counting(), out=tmp_path / "cut", settings=settings(), evaluate=filling)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in (tmp_path / "cut").iterdir() if "partial" in path.name]
    resumed = model(4)
    fit(resumed, Counting(), out=tmp_path / "cut", settings=settings(), evaluate=evaluate, resume=True)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_disk_that_is_full_at_once_is_told_as_such(tmp_path: Path) -> None:
    from test_training_loop import Counting, model, settings

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="nothing is saved yet: free space, begin again"):
            fit(model(), Counting(), out=tmp_path, settings=settings())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest(tmp_path, "last") is None
