"""Two processes train as one does, and a run goes on in another number of them."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from test_training_loop import Counting, config, records

import hanmo
from hanmo.model import Model
from hanmo.training import Settings, distributed
from hanmo.training.checkpoints import newest
from hanmo.training.loop import fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class Ragged(Counting):
    """Rows of different lengths, so that means over parts are not means over the whole."""

    def batches(self, epoch: int = 0, step: int = 0):
        for at_epoch, at_step, ids in super().batches(epoch, step):
            for row in range(len(ids)):
                ids[row, 4 + 3 * row :] = 0
            yield at_epoch, at_step, ids


def train(out: Path, optimizer: str, steps: int) -> None:
    """Train in this process, together with those that were joined."""
    torch.set_num_threads(1)
    settings = Settings(
        steps=steps, optimizer=optimizer, lr=3e-3, warmup=2, weight_decay=0.01, schedule="constant", average=0.9,
        average_every=2, accumulate=2, evaluate_every=4, save_every=4, log_every=1, recompute=True,
    )  # fmt: skip

    def evaluate(model: Model) -> dict[str, float]:
        ids = torch.arange(1, 13)[None]
        model.eval()
        with torch.no_grad():
            found = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
        model.train()
        return {"loss": float(-found.mean())}

    model = Model(config(0.0)).initialize(0)
    weight = model.decoder.blocks[0].attention.query.weight
    weight.data = weight.data.T.contiguous().T  # as a checkpoint's kernels lie
    fit(model, Ragged(), out=out, settings=settings, evaluate=evaluate, resume=True)


def worker(number: int, count: int, port: int, jobs: list[tuple[Path, str, int]]) -> None:
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    with distributed.started():
        assert distributed.world() == count and distributed.rank() == number
        for out, optimizer, steps in jobs:
            train(out, optimizer, steps)
    os._exit(0)  # gloo's threads now and then abort the interpreter's own way out


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_and_resume_either_way(tmp_path: Path) -> None:
    optimizers = ["adafactor-gpt2-ml", "adamw", *(["muon"] if hasattr(torch.optim, "Muon") else [])]
    for optimizer in optimizers:
        train(tmp_path / f"{optimizer}-one", optimizer, 8)
        train(tmp_path / f"{optimizer}-grown", optimizer, 4)  # goes on in two
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [(tmp_path / f"{optimizer}-{kind}", optimizer, steps)
            for optimizer in optimizers for kind, steps in (("two", 8), ("grown", 8), ("shrunk", 4))]  # fmt: skip
    processes.spawn(worker, (2, port, jobs), nprocs=2)
    for optimizer in optimizers:
        assert (newest(tmp_path / f"{optimizer}-shrunk", "last") / "shards").is_dir()
        train(tmp_path / f"{optimizer}-shrunk", optimizer, 8)  # goes on in one
        wanted = [record["loss"] for record in records(tmp_path / f"{optimizer}-one") if "loss" in record]
        assert len(wanted) == 8 and wanted[-1] < 0.95 * wanted[0]
        # Muon makes a matrix orthogonal by five products in bfloat16, whose sums depend on how it is cut.
        rounding = 5 * torch.finfo(torch.bfloat16).eps if optimizer == "muon" else 0.0
        for kind in ("two", "grown", "shrunk"):
            found = [record["loss"] for record in records(tmp_path / f"{optimizer}-{kind}") if "loss" in record]
            assert found == pytest.approx(wanted, abs=1e-5 + rounding * (wanted[0] - wanted[-1])), (optimizer, kind)
            best = hanmo.load(tmp_path / f"{optimizer}-{kind}" / "best").model
            ours = hanmo.load(tmp_path / f"{optimizer}-one" / "best").model
            for name, weight in ours.named_parameters():
                if not name.endswith("key.bias"):  # softmax takes it away: its gradient is noise, made large by both
                    assert torch.allclose(best.get_parameter(name), weight, atol=1e-4 + rounding * 8 * 3e-3)
    assert json.loads((tmp_path / "adamw-two" / "best" / "hanmo.json").read_text("utf-8"))["family"] == "gpt2_ml"
