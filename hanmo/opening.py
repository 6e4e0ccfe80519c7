"""Open a model for writing as the commands do: small weights on the CPU engine, without torch; others with torch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanmo.cores import set_torch_threads
from hanmo.errors import ConfigError

if TYPE_CHECKING:
    from hanmo.pipeline import Pipeline


def on_cpu_engine(weights: str | None, device: str) -> bool:
    """Tell whether `open_model` takes the CPU engine, which converts the weights once and keeps them."""
    return weights in ("int8", "int4") and not (weights == "int8" and device.startswith("cuda"))


def open_model(
    path: str | Path,
    *,
    weights: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    **reading: Any,
) -> "Pipeline":
    """Open a checkpoint for writing.

    weights: "float32", "bfloat16", "int8" or "int4"; None keeps the checkpoint's.   device: "auto" takes a GPU if there
    is one, but for int8 and int4.   threads: of the CPU; None is one per core.
    progress: called with the bytes of each tensor that is read.
    reading: config, family, mask, tokenizer, pre_tokenize, as for `hanmo.load`.
    Raises ConfigError for a device that does not exist or does not run these weights, and what `hanmo.load` raises.
    """
    if on_cpu_engine(weights, device):
        if device not in ("auto", "cpu"):
            raise ConfigError(f"device is {device!r} and weights are {weights}; these run on a CPU: leave device out")
        from hanmo.pipeline import open_writer

        assert weights is not None
        return open_writer(path, weights=weights, progress=progress, threads=threads, **reading)
    import torch

    from hanmo.loading import load

    set_torch_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; expected cpu, cuda, cuda:0 …, mps or auto") from None
    dtype = "bfloat16" if weights == "int8" else weights
    loaded = load(path, dtype=dtype, device=place, progress=progress, **reading)
    if weights == "int8":
        from hanmo.inference.cuda.blocks import quantized

        loaded.model = quantized(loaded.model)
    return loaded
