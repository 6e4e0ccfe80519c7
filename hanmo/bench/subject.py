"""What is measured: a checkpoint, the type of its weights, a device; and its start in a fresh process.

Run as a module it is that process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hanmo import errors
from hanmo.bench.machine import memory
from hanmo.checkpoint.inspect import Inspection, inspect
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError
from hanmo.opening import on_cpu_engine, open_model

if TYPE_CHECKING:
    from hanmo.model_pipeline import ModelPipeline
    from hanmo.pipeline import Pipeline

_LOOKED_UP = (".position.weight", ".segment.weight", ".relative.weight")


@dataclass(frozen=True)
class Subject:
    """A checkpoint and how it runs: the arguments of `hanmo.opening.open_model`."""

    path: Path
    weights: str | None = "int8"
    device: str = "cpu"
    threads: int | None = None
    mask: str | None = None

    def look(self) -> Inspection:
        """Inspect the checkpoint without loading it; raise CheckpointError if the model cannot generate text."""
        found = inspect(self.path)
        config = found.found.config
        if config.can_generate or (self.mask is not None and config.output != "none"):
            return found
        why = "it has no output onto its vocabulary"
        if config.output != "none":
            why = "its attention is bidirectional; give mask='prefix' or mask='causal' to make it generate"
        raise CheckpointError(
            f"{found.path} is a plain encoder ({config.family}), and what is measured here is generation: {why}"
        )

    def open(self) -> "Pipeline":
        """Open the model as `hanmo write` does."""
        return open_model(self.path, weights=self.weights, device=self.device, threads=self.threads, mask=self.mask)

    def converted(self, progress: Callable[[int], None] | None = None) -> Path | None:
        """Return the cached weights of the CPU engine, converted if they are not there; None if it is not used."""
        if not on_cpu_engine(self.weights, self.device):
            return None
        from hanmo.inference.openvino.engine import open_weights

        return open_weights(self.path, weights=str(self.weights), progress=progress).path

    def sizes(self, writer: "Pipeline") -> dict[str, int]:
        """Return the bytes of each tensor that the open model holds, by our names."""
        if kept := self.converted():
            from hanmo.checkpoint.safetensors import Safetensors

            return {name: info.nbytes for name, info in Safetensors(kept).tensors.items()}
        model = cast("ModelPipeline", writer).model
        return {name: each.nbytes for name, each in [*model.named_parameters(), *model.named_buffers()]}


def bytes_per_token(config: ModelConfig, sizes: Mapping[str, int]) -> int:
    """Sum the bytes of weights that one decoding step reads.

    Not counted: embedding tables, of which a few rows are read, and what only prefill needs (an encoder, and the key
    and value projections of cross-attention). Layers that share weights read them once each.
    """
    total = 0
    for name, nbytes in sizes.items():
        stack, _, rest = name.partition(".")
        looked_up = name.endswith(_LOOKED_UP) or (stack == "token" and not config.tied)
        in_encoder = stack == "encoder" and config.is_encoder_decoder
        in_prefill = in_encoder or ".cross.key" in name or ".cross.value" in name
        if not (looked_up or in_prefill or stack in ("pooler", "discriminator")):
            shared = config.main.shared_layers and rest.startswith("blocks.")
            total += nbytes * (config.main.num_layers if shared else 1)
    return total


def measure_start(subject: Subject, prompt: list[int]) -> dict[str, Any]:
    """Start a process that opens the model, reads the prompt and generates a token.

    Returns "open_seconds", of opening alone; "first_token_seconds", from the start of Python to the token;
    "torch_imported"; and the process's memory after the token, as "anonymous_bytes" and so on.
    Raises the HanmoError that the process raised, or CheckpointError if it failed otherwise.
    """
    options = json.dumps({**asdict(subject), "path": str(subject.path), "prompt": prompt})
    start = time.monotonic()  # which is the same clock in all processes
    command = [sys.executable, "-m", "hanmo.bench.subject", options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        message = done.stderr.strip()
        kind, _, text = message.rpartition("\n")[2].partition(": ")
        module, _, name = kind.rpartition(".")
        if module == errors.__name__:
            raise getattr(errors, name)(text)
        raise CheckpointError(
            f"a fresh process that opened {subject.path} ended with {done.returncode}: "
            f"{message or 'is there enough memory?'}"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return {"first_token_seconds": found.pop("first_token") - start, **found}


def _main(path: str, prompt: list[int], **options: Any) -> None:
    start = time.monotonic()
    writer = Subject(Path(path), **options).open()
    found = {"open_seconds": time.monotonic() - start}
    _, logits = writer.engine.prefill([prompt], room=1)
    int(logits[0].argmax())
    found |= {"first_token": time.monotonic(), "torch_imported": "torch" in sys.modules}
    sizes = {**memory(), "gpu_peak": None}
    if options["device"].startswith("cuda"):
        import torch

        sizes["gpu_peak"] = torch.cuda.max_memory_allocated()
    print(json.dumps(found | {f"{name}_bytes": size for name, size in sizes.items()}))


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
