"""Worker: Hanmo's engines. Options: checkpoint, weights, threads, and engine: "openvino", or "torch" as a baseline.

mask: lets an encoder generate.   source: the folder of another checkout, whose package runs instead.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worker import memory, random_ids, serve, steps, timed


def open_model(options: dict[str, Any]) -> dict[str, Any]:
    """Open the checkpoint; the first time of all, its weights are converted and kept."""
    if "source" in options:
        sys.path.insert(0, options["source"])
    engine, info = (_openvino if options["engine"] == "openvino" else _torch)(options)

    def decode(context: int, tokens: int, rows: int = 1) -> list[float]:
        """Milliseconds of each step after a prompt, all rows of it together."""
        prompts = [random_ids(context, engine.vocab_size, seed) for seed in range(rows)]
        cache, logits = engine.prefill(prompts, room=tokens)

        def write(logits: Any) -> Any:
            while True:
                logits = cache.step(_likeliest(logits))
                yield

        return steps(write(logits), tokens)

    def prompt(tokens: int) -> float:
        """Seconds to read a prompt."""
        return timed(lambda: engine.prefill([random_ids(tokens, engine.vocab_size)], room=1))

    def static(prompts: list[list[int]], tokens: list[int]) -> float:
        """Seconds for one batch of unequal rows, which begin together and leave when they end."""
        from hanmo.generate import GREEDY, Limits, sample

        left = list(tokens)

        def stop(row: int, id: int) -> str | None:
            left[row] -= 1
            return None if left[row] else "length"

        limits = Limits(max_tokens=max(tokens))
        return timed(lambda: list(sample(engine, prompts, seed=0, sampling=GREEDY, limits=limits, stop=stop)))

    return {"decode": decode, "prompt": prompt, "static": static, "info": lambda: {**info(), **memory()}}


def _openvino(options: dict[str, Any]) -> tuple[Any, Callable[[], dict[str, Any]]]:
    import openvino

    from hanmo import __version__
    from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights

    weights = open_weights(options["checkpoint"], weights=options["weights"])
    engine = OpenVinoEngine(weights, mask=options.get("mask"), threads=options["threads"])
    name = f"Hanmo {__version__} {options['weights']} (OpenVINO {openvino.__version__})"
    return engine, lambda: {"name": name, "bytes": Path(weights.path).stat().st_size}


def _torch(options: dict[str, Any]) -> tuple[Any, Callable[[], dict[str, Any]]]:
    import torch

    from hanmo import __version__
    from hanmo.inference.torch_engine import TorchEngine
    from hanmo.loading import load

    torch.set_num_threads(options["threads"])
    model = load(options["checkpoint"], dtype=getattr(torch, options["weights"]), mask=options.get("mask")).model
    size = sum(parameter.nbytes for parameter in model.parameters())
    name = f"Hanmo {__version__} {options['weights']} (torch {torch.__version__})"
    return TorchEngine(model), lambda: {"name": name, "bytes": size}


def _likeliest(logits: Any) -> Sequence[int]:
    return [int(row) for row in logits.argmax(-1)]


if __name__ == "__main__":
    serve(open_model)
