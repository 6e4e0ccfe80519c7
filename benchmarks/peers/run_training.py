"""Worker: Hanmo's training steps on random ids.

Options: layers, hidden_size, vocab_size, positions, rows, precision, optimizer, threads, recompute.
source: the folder of another checkout, whose package runs instead; one of version 0.1 too.
"""

import math
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from worker import memory, serve


def open_model(options: dict[str, Any]) -> dict[str, Any]:
    """Make a random model of the shape and its optimizer."""
    sys.path.insert(0, options["source"])
    import torch

    from hanmo.families import FAMILIES
    from hanmo.model import Model

    next_token_loss = _named("next_token_loss", "loss")
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    width = options["hidden_size"]
    sizes = {
        "vocab_size": options["vocab_size"], "hidden_size": width, "num_hidden_layers": options["layers"],
        "num_attention_heads": max(1, width // 64), "intermediate_size": 4 * width,
        "max_position_embeddings": options["positions"], "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    names = FAMILIES["gpt2_ml"].tensorflow
    assert names is not None
    model = Model(names.config(sizes)).initialize(0).train()
    if options["precision"] == "bfloat16":
        model.to(torch.bfloat16)
    model.main.recompute = options["recompute"]
    if options["optimizer"].startswith("adafactor"):
        groups = _named("parameter_groups", "optim.schedule", "parameters")
        optimizer = _named("AdaFactor", "optim.adafactor", "adafactor")(
            groups(model.named_parameters(), lr=1e-4, weight_decay=0.01), "gpt2-ml"
        )
        finish = _named("UpdateInBackward", "optim.in_backward", "in_backward")(optimizer).finish
    else:
        settings = _named("Settings")(steps=1, optimizer=options["optimizer"])
        optimizer = _named("make_optimizer", "step")(model, settings)

        def finish() -> None:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            assert math.isfinite(norm)
            optimizer.step()
            optimizer.zero_grad()

    ids = torch.randint(1, options["vocab_size"], (options["rows"], options["positions"] + 1))

    def train(steps: int) -> list[float]:
        """Milliseconds a token of each step."""
        found = []
        for _ in range(steps):
            begun = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16) if options["precision"] == "mixed" else nullcontext():
                loss = next_token_loss(model, ids)
            torch.autograd.backward(loss)
            finish()
            found.append(1000 * (time.perf_counter() - begun) / (ids.numel() - len(ids)))
        return found

    return {"train": train, "info": lambda: {"bytes": sum(p.nbytes for p in model.parameters()), **memory()}}


def _named(name: str, *modules: str) -> Any:
    """Find a name in the package of training or in one of its modules, wherever the version has it."""
    for package in ("hanmo.training", "hanmo.train"):
        for module in [f"{package}.{module}" for module in modules] or [package]:
            try:
                return getattr(import_module(module), name)
            except ModuleNotFoundError:
                continue
    raise ImportError(f"no {name} in {modules}")


if __name__ == "__main__":
    serve(open_model)
