"""Files of `torch.save` (`pytorch_model.bin`, `.pt`), read without running code from them.

Knows torch, which it imports when a file is opened, and where people put the tensors in such files.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from reprlib import repr
from typing import TYPE_CHECKING, Any

from hanmo.checkpoint.source import STORAGE, Array, Source, TensorInfo, storage_bytes
from hanmo.errors import CheckpointError, CorruptFile
from hanmo.files import errors_as, open_file

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 22
_MOST_REPEATED = 1 << 20  # bytes that the expanded tensors of a file may come to, beyond what is stored
_NESTED = ("state_dict", "model_state_dict", "model", "module")


class TorchFile(Source):
    """One file of torch.save that is open for reading.

    The tensors may be at the top or under "state_dict", "model_state_dict", "model" or "module". Files of
    torch 1.6 and later are mapped; older ones are read into memory.
    Raises MissingFile, CheckpointError for contents that are not tensors by name, and CorruptFile for damaged
    files and for pickles that would run code: they are never run.
    verify: compare the CRC-32 of every record, before the first tensor is read, where the file has them (torch 1.6).
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        with open_file(path) as file:
            zipped = file.read(4) == b"PK\x03\x04"
        self._verify = verify and zipped
        self._found = dict(sorted(_state_dict(_load(path, zipped=zipped), path).items()))
        self.tensors = {}
        beyond = {}
        for name, tensor in self._found.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in STORAGE or str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu":
                raise CheckpointError(
                    f"tensor {name!r} of {path} is {tensor.layout} {dtype} on {tensor.device}; expected a dense tensor "
                    "of plain numbers: save it again"
                )
            self.tensors[name] = TensorInfo(name, dtype, tuple(tensor.shape), storage_bytes(dtype, tensor.shape))
            beyond[name] = tensor.nbytes - tensor.untyped_storage().nbytes()
        # A stride of 0 repeats a number: a small file, a full memory.
        if sum(size for size in beyond.values() if size > 0) > _MOST_REPEATED:
            name = max(beyond, key=lambda name: beyond[name])
            tensor = self._found[name]
            raise CorruptFile(
                f"tensor {name!r} of {path} claims the shape {list(tensor.shape)} but repeats the numbers of "
                f"{tensor.untyped_storage().nbytes():,} bytes; save it again, made contiguous"
            )
        self.in_file_order = sorted(self._found, key=lambda name: self._found[name].data_ptr())

    def read(self, name: str) -> Array:
        """Return one tensor; those that share memory in the file share it here."""
        import torch

        if self._verify:
            _check_sums(self.path)
            self._verify = False
        tensor, dtype = self._found[name], self.tensors[name].dtype
        with errors_as(CorruptFile, f"tensor {name!r} of {self.path} cannot be read"):
            return (tensor if STORAGE[dtype] == dtype else tensor.view(getattr(torch, STORAGE[dtype]))).numpy()

    def close(self) -> None:
        self._found = {}


def _load(path: Path, *, zipped: bool) -> object:
    """Return what the file holds; the tensors of a zip archive are mapped."""
    import torch

    with errors_as(CorruptFile, f"{path} is not a complete file of torch.save", advice="; download or copy it again"):
        if zipped:
            with open_file(path) as file, zipfile.ZipFile(file) as archive:
                # Mapping would take compressed records for numbers, and they may unpack to any size.
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise CorruptFile(
                        f"{path} holds compressed records, which torch.save never writes; load it with torch.load and "
                        "save it again, or better as safetensors"
                    )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about old protocols, of no use to whoever was given the file
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            # torch's message is long; one sentence names what was refused.
            sentences = str(error).replace(". ", "\n").splitlines() or [""]
            reason = next((line for line in sentences if "GLOBAL" in line or "nsupported" in line), sentences[0])
            raise CorruptFile(
                f"{path} is refused: it is damaged, or its pickle holds more than tensors and could run code "
                f"({reason.strip()[:300]}); save its state_dict alone, or better as safetensors"
            ) from None


def _check_sums(path: Path) -> None:
    """Read every record and compare its CRC-32; torch writes 0 where it was told to compute none."""
    with (
        errors_as(CorruptFile, f"{path} is damaged", advice="; download it again, or give verify=False to load it"),
        open_file(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        for record in archive.infolist():
            if record.CRC:
                with archive.open(record) as stream:
                    while stream.read(_CHUNK):
                        pass


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
                f"{path} holds a {type(value).__name__} under {repr(name)}; expected tensors by name, at the top or "
                f"under one of {', '.join(_NESTED)}"
            )
        tensors[name] = value.detach()
    return tensors
