"""Low-rank adapters (LoRA, arXiv 2106.09685): added to linear layers, merged, saved and loaded.

Adapters are float32 whatever the weights are, and compute in the dtype of their input.

    y = W x + b + alpha / rank · up (down x)        down: random; up: zeros, so the initial output is unchanged
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hanmo.checkpoint.load import as_tensor
from hanmo.checkpoint.safetensors import Safetensors
from hanmo.checkpoint.staged import atomic_path
from hanmo.errors import CheckpointError, ConfigError, MissingFile, TensorMismatch
from hanmo.files import parse_json, read_json
from hanmo.model import Model

TARGETS = ("attention", "cross", "feed_forward")
ADAPTER_CONFIG = "adapter_config.json"


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter; `weight` and `bias` are those of the layer, frozen.

    `down` is not initialised.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, scale: float, dropout: float) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.kind = type(linear)
        self.rank, self.scale, self.dropout = rank, scale, dropout
        device = linear.weight.device
        self.down = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features]."""
        inner = F.linear(F.dropout(x, self.dropout, self.training), self.down.to(x.dtype))
        return self.kind.forward(self, x) + self.scale * F.linear(inner, self.up.to(inner.dtype))


def add_lora(
    model: Model,
    rank: int = 8,
    *,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Add adapters to linear layers and freeze everything else; return the names of the layers.

    alpha: the adapters' output is multiplied by alpha / rank.   dropout: of the adapters' input, in training.
    targets: parts of names in `model.named_parameters()`, such as "attention.query" or "decoder.blocks.0";
    None means every linear layer of TARGETS.   seed: of the adapters' `down`.
    Raises ConfigError if the model has adapters, a target fits no linear layer, or a number is out of range.
    """
    if rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
        raise ConfigError(
            f"LoRA has rank={rank}, alpha={alpha}, dropout={dropout}; expected rank >= 1, alpha > 0, dropout in [0, 1)"
        )
    if has_lora(model):
        raise ConfigError("the model has adapters; merge them with merge_lora before adding others")
    linears = _linears(model)
    chosen = {name: [t for t in targets or TARGETS if f".{t}." in f".{name}."] for name in linears}
    for target in targets or ():
        if not any(target in found for found in chosen.values()):
            raise ConfigError(
                f"the LoRA target {target!r} fits no linear layer; expected parts of names such as "
                f"{next(iter(linears))}"
            )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, found in chosen.items() if found]
    for name in names:
        adapted = AdaptedLinear(linears[name], rank=rank, scale=alpha / rank, dropout=dropout)
        with torch.no_grad():
            adapted.down.copy_(torch.randn(adapted.down.shape, generator=generator) * adapted.in_features**-0.5)
        model.set_submodule(name, adapted)
    return names


@torch.no_grad()
def merge_lora(model: Model) -> None:
    """Add every adapter to its layer's weights and remove it; all parameters become trainable.

    Sums are float32, rounded to the weights' dtype. Raises ConfigError if there are no adapters.
    """
    for name, layer in _adapted(model).items():
        layer.weight.copy_(torch.addmm(layer.weight.float(), layer.up, layer.down, alpha=layer.scale))
        with torch.device("meta"):
            plain = layer.kind(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        model.set_submodule(name, plain)
    model.requires_grad_(True)


def save_lora(model: nn.Module, path: str | Path) -> Path:
    """Write what is trained, the adapters, as a safetensors file with rank, alpha, dropout and layers in its metadata.

    Raises ConfigError if there are no adapters.
    """
    layers, path = _adapted(model), Path(path)
    first = next(iter(layers.values()))
    tensors = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    metadata = {
        "format": "pt",
        "rank": str(first.rank),
        "alpha": str(first.scale * first.rank),
        "dropout": str(first.dropout),
        "targets": json.dumps(list(layers)),
    }
    with atomic_path(path) as made:
        save_file(tensors, made, metadata=metadata)
    return path


def load_lora(model: Model, path: str | Path) -> list[str]:
    """Add the adapters of a file to the layers it names; return the names of the layers.

    Raises MissingFile, CorruptFile, CheckpointError for a file without adapters, TensorMismatch for adapters of another
    network, ConfigError as `add_lora`; the model is not changed then.
    """
    linears = _linears(model)
    with Safetensors(Path(path)) as file:
        try:
            rank = int(file.metadata["rank"])
            alpha, dropout = float(file.metadata["alpha"]), float(file.metadata["dropout"])
            targets = parse_json(file.metadata["targets"], "targets", kind=list)
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} is no file of adapters: its metadata lacks or garbles {error}; give one that save_lora wrote"
            ) from None
        wanted: dict[str, tuple[int, ...]] = {}
        for name in map(str, targets):
            size = linears[name].weight.shape if name in linears else (0, 0)
            wanted |= {f"{name}.down": (rank, size[1]), f"{name}.up": (size[0], rank)}
        found = {name: info.shape for name, info in file.tensors.items()}
        for name in sorted(set(found) | set(wanted)):
            if found.get(name) != wanted.get(name):
                raise TensorMismatch(
                    f"{path} does not fit the model: {name} is {found.get(name, 'missing')}, expected "
                    f"{wanted.get(name, 'no such tensor')}; load the model that the adapters were trained on"
                )
        names = add_lora(model, rank, alpha=alpha, dropout=dropout, targets=targets)
        with torch.no_grad():
            for name, tensor in _halves(_adapted(model)):
                tensor.copy_(as_tensor(file.read(name), file.tensors[name].dtype))
    return names


def name_base(folder: Path, base: Path, **options: str | Path | None) -> Path:
    """Write FOLDER/adapter_config.json: the adapters' base model, under PEFT's key, and how to load it.

    options: of `hanmo.load` (config, family, mask); None leaves one out.
    """
    path = folder / ADAPTER_CONFIG
    told = {"base_model_name_or_path": str(base.resolve())}
    told |= {name: str(value) for name, value in options.items() if value is not None}
    with atomic_path(path) as made:
        made.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return path


def base_of(adapters: Path) -> tuple[Path, dict[str, str]]:
    """Return the path of the base model of a file of adapters, and the options of `hanmo.load` for it.

    Raises MissingFile if the adapter_config.json beside it is missing, CheckpointError if it names no model.
    """
    path = adapters.parent / ADAPTER_CONFIG
    if not path.is_file():
        raise MissingFile(
            f"{path} is missing, which names the model that these adapters belong to; load that model, then "
            "hanmo.training.lora.load_lora(loaded.model, adapters)"
        )
    told = read_json(path)
    base = told.pop("base_model_name_or_path", None)
    if not isinstance(base, str) or not all(isinstance(value, str) for value in told.values()):
        raise CheckpointError(f"{path} names no model under base_model_name_or_path; write its path there")
    return Path(base), {name: told[name] for name in ("config", "family", "mask") if name in told}


def has_lora(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(isinstance(module, AdaptedLinear) for module in model.modules())


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    found = {name: module for name, module in _linears(model).items() if isinstance(module, AdaptedLinear)}
    if not found:
        raise ConfigError("the model has no adapters; add them with add_lora or load_lora")
    return found


def _halves(layers: dict[str, AdaptedLinear]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, layer in layers.items():
        yield f"{name}.down", layer.down
        yield f"{name}.up", layer.up
