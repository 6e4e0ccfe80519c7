"""Two processes train a task as one does."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from toy_tasks import entity_rows, model_folder, sky_rows

import hanmo
from hanmo.errors import ConfigError
from hanmo.tasks import fit
from hanmo.training import distributed
from hanmo.training.args import TrainArgs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


ROWS = {"classify": sky_rows, "tag": entity_rows}


def train(kind: str, base: Path, out: Path, **changes) -> None:
    args = TrainArgs(batch=5, steps=12, lr=2e-3, evaluate_every=6, save_every=6, log_every=1, **changes)
    fit(base, train=ROWS[kind](48), dev=ROWS[kind](24, seed=1), kind=kind, out=out, args=args)


def worker(number: int, port: int, kind: str, base: Path, out: Path) -> None:
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with distributed.started():
        train(kind, base, out)
        with pytest.raises(ConfigError, match="LoRA of rank 4 runs in one process, not 2"):
            train(kind, base, out.with_name("lora"), lora=4)
    os._exit(0)  # gloo's threads now and then abort the interpreter's own way out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_two_processes_give_the_losses_and_the_folder_of_one(kind: str, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model")
    train(kind, base, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.spawn(worker, (port, kind, base, tmp_path / "two"), nprocs=2)
    logs = [
        list(map(json.loads, (tmp_path / name / "log.jsonl").read_text("utf-8").splitlines()))
        for name in ("one", "two")
    ]
    losses = [[record["loss"] for record in log if "loss" in record] for log in logs]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    texts = [row["text"] for row in ROWS[kind](8, seed=2)]
    one, two = (hanmo.load(tmp_path / name).predict(texts) for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        if kind == "tag":
            assert ours == theirs
        else:
            assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-3)
