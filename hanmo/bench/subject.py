"""What is measured: a checkpoint, how its weights are held, and where. Knows files and engines, no clock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hanmo.checkpoint.inspect import Inspection, inspect
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError
from hanmo.pipeline import Pipeline, open_writer

if TYPE_CHECKING:
    from hanmo.inference.openvino.weights import Weights

__all__ = ["Subject", "bytes_per_token"]

_LOOKED_UP = (".position.weight", ".segment.weight", ".relative.weight")


@dataclass(frozen=True)
class Subject:
    """A checkpoint and how it is to be run.

    weights: "float32", "bfloat16", "int8" or "int4".   device: "cpu" is OpenVINO's, any other is torch's.
    threads: of the CPU; None leaves it to OpenVINO.   mask: "causal" or "prefix" lets a BERT-like encoder write.
    Raises ConfigError where these contradict each other.
    """

    path: Path
    weights: str = "int8"
    device: str = "cpu"
    threads: int | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.device == "cpu":
            return
        if self.weights in ("int8", "int4"):
            raise ConfigError(
                f"device is {self.device!r} and weights are {self.weights}; those run on a CPU: give weights='bfloat16'"
            )
        if self.threads is not None:
            raise ConfigError(f"device is {self.device!r} and threads is {self.threads}; leave threads out")

    def look(self) -> Inspection:
        """Say what the checkpoint is, without loading it.

        Raises CheckpointError for a model that does not write, and what `inspect` raises.
        """
        found = inspect(self.path)
        config = found.found.config
        if config.can_generate or (self.mask is not None and config.output != "none"):
            return found
        way = "it has no output onto its vocabulary"
        if config.output != "none":
            way = "it sees both ways; give mask='prefix' or mask='causal' to have it write"
        raise CheckpointError(
            f"{found.path} is a plain encoder ({config.family}), and what is measured here is writing: {way}"
        )

    def convert(self, progress: Callable[[int], None] | None = None) -> "Weights":
        """Map the weights as the CPU engine keeps them, converted first if they are not there; see `open_weights`."""
        from hanmo.inference.openvino.engine import open_weights

        return open_weights(self.path, weights=self.weights, progress=progress)

    def open(self) -> Pipeline:
        """Open the model for writing, as `hanmo write` does."""
        if self.device == "cpu":
            return open_writer(self.path, weights=self.weights, threads=self.threads, mask=self.mask)
        from hanmo.loading import load

        return load(self.path, dtype=self.weights, device=self.device, mask=self.mask)

    def sizes(self, writer: Pipeline) -> dict[str, int]:
        """Give the bytes of each tensor that the open model holds, by our names."""
        if self.device == "cpu":
            from hanmo.checkpoint.safetensors import Safetensors

            return {name: info.nbytes for name, info in Safetensors(self.convert().path).tensors.items()}
        from hanmo.model_pipeline import ModelPipeline

        assert isinstance(writer, ModelPipeline)
        return {name: parameter.nbytes for name, parameter in writer.model.named_parameters()}


def bytes_per_token(config: ModelConfig, sizes: Mapping[str, int]) -> int:
    """Count the bytes of weights that writing one token reads.

    Not counted: tables of which a few rows are looked up, and what only reading the prompt needs (an encoder, and the
    keys and values that cross-attention has of its output). Layers that share weights read them once each.
    """
    total = 0
    for name, nbytes in sizes.items():
        stack, _, rest = name.partition(".")
        if name.endswith(_LOOKED_UP) or (stack == "token" and not config.tied):
            continue
        if (
            stack in ("pooler", "discriminator")
            or (stack == "encoder" and config.is_encoder_decoder)
            or ".cross.key" in name
        ):
            continue
        if ".cross.value" in name:
            continue
        shared = config.main.shared_layers and rest.startswith("blocks.")
        total += nbytes * (config.main.num_layers if shared else 1)
    return total
