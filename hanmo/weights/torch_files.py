"""Files of `torch.save` (`pytorch_model.bin`, `.pt`), read without running code from them and written.

Knows torch, which it imports when a file is opened or written, and where people put the tensors in such files.
"""

from __future__ import annotations

import errno
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from hanmo.errors import CheckpointError, CorruptFile, MissingFile
from hanmo.weights.shards import group, write_sharded
from hanmo.weights.source import STORAGE, Array, TensorInfo, storage_bytes
from hanmo.weights.write import Item, describe, raw_chunks

if TYPE_CHECKING:
    import torch

__all__ = ["TorchFile", "write_torch"]

_NESTED = ("state_dict", "model_state_dict", "model", "module")


class TorchFile:
    """One file of torch.save that is open for reading; a `Source`.

    The tensors may stand at the top or under "state_dict", "model_state_dict", "model" or "module". Files of
    torch 1.6 and later are mapped; older ones are read whole.
    Raises MissingFile, CheckpointError for contents that are not tensors by name, and CorruptFile for damaged
    files and for pickles that would run code: they are never run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = dict(sorted(_state_dict(_load(path), path).items()))
        self._infos = {name: _info(name, tensor, path) for name, tensor in self._found.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name, sorted."""
        return self._infos

    @property
    def in_file_order(self) -> Sequence[str]:
        """Names by address."""
        return sorted(self._found, key=lambda name: self._found[name].data_ptr())

    def read(self, name: str) -> Array:
        """Return one tensor; see `Source.read`. Tensors that share memory in the file share it here."""
        import torch

        tensor = self._found[name]
        storage = STORAGE[self._infos[name].dtype]
        return tensor.view(getattr(torch, storage)).numpy() if storage != self._infos[name].dtype else tensor.numpy()

    def release(self, name: str) -> None:
        """Do nothing: torch owns the map."""

    def close(self) -> None:
        """Let go of the file; arrays that were read stay valid."""
        self._found = {}

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_torch(path: str | Path, tensors: Iterable[Item], *, max_shard_bytes: int | None = None) -> Path:
    """Write tensors to `path`, or to several files beside it with `PATH.index.json`; return what to open.

    The file holds a flat dict of tensors. A file's tensors are held in memory while it is written, unless they
    are views of a mapped file.   max_shard_bytes: the most bytes of tensors in a file; None writes one.
    Raises CheckpointError for a name given twice or a dtype that torch lacks.
    """
    import torch

    known = [dtype for dtype in STORAGE if isinstance(getattr(torch, dtype, None), torch.dtype)]
    groups = group(tensors, max_shard_bytes, dtypes=known, kind="torch")

    def write_one(made: Path, items: list[Item]) -> None:
        torch.save({item[0]: _tensor(item) for item in items}, made)

    return write_sharded(Path(path), groups, write_one)


def _tensor(item: Item) -> torch.Tensor:
    import torch

    info, chunks = describe(item)
    raw = list(raw_chunks(info, chunks))
    flat = raw[0] if len(raw) == 1 else np.concatenate([np.empty(0, np.uint8), *raw])
    typed = flat.view(STORAGE[info.dtype]).reshape(info.shape)
    if not typed.flags.writeable:  # torch would warn
        typed = typed.copy()
    return torch.from_numpy(typed).view(getattr(torch, info.dtype))


def _load(path: Path) -> object:
    import torch

    try:
        with path.open("rb") as file:
            mapped = file.read(4) == b"PK\x03\x04"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old protocols, of no use to whoever was given the file
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing; download it again into {path.parent}") from None
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0][:300]
        raise CorruptFile(
            f"{path} is refused: it is damaged, or its pickle holds more than tensors and could run code "
            f"({_refused(str(error)) or reason}); save its state_dict alone, or better as safetensors"
        ) from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # not about the contents
            raise
        reason = str(error).partition(". ")[0][:300] or type(error).__name__
        raise CorruptFile(f"{path} is not a whole file of torch.save: {reason}; download or copy it again") from None


_DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OSError)
"""What torch.load is seen to raise on damaged bytes."""


def _refused(message: str) -> str:
    """Return the sentence of torch's long message that names what was refused, if there is one."""
    for line in message.replace(". ", "\n").splitlines():
        if "GLOBAL" in line or "nsupported" in line:
            return line.strip()[:300]
    return ""


def _state_dict(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    import torch

    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected tensors by name")
    tensors: dict[str, Any] = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path} holds a {type(value).__name__} under {name!r}; expected tensors by name, at the top or "
                f"under one of {', '.join(_NESTED)}"
            )
        tensors[name] = value.detach()
    return tensors


def _info(name: str, tensor: torch.Tensor, path: Path) -> TensorInfo:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in STORAGE or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(
            f"tensor {name!r} of {path} is {tensor.layout} {dtype} on {tensor.device}; expected a dense tensor of "
            "plain numbers: save it again"
        )
    return TensorInfo(name, dtype, tuple(tensor.shape), storage_bytes(dtype, tensor.shape))
