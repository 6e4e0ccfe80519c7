"""Describe a checkpoint: its family, sizes and files, the config.json it needs, and what does not fit.

Reads no tensor, and imports torch only for files that torch alone can open.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hanmo.checkpoint.open import Location, locate, open_source, read_own_config
from hanmo.checkpoint.quantized import Quantized
from hanmo.checkpoint.recognise import SPARE, Recognised, recognise, recognise_own
from hanmo.checkpoint.renamed import Renamed
from hanmo.checkpoint.source import Source
from hanmo.errors import ConfigError, MissingFile
from hanmo.families.family import TRAINING
from hanmo.files import open_file, read_bytes, read_json

_SLOTS = {reason for reason in TRAINING.values() if "state" in reason}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoredFile:
    """A file that holds tensors; bytes: None where it is missing; expected: what its index says, if there is one."""

    path: Path
    bytes: int | None
    expected: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What one checkpoint is.

    path: what to load.   format: "tensorflow", "safetensors" or "torch", the files; found.format has the names.
    tensors: how many are listed.   config: the config.json that it needs; config_file: the one that is there.
    vocabulary: vocab.txt and its number of words, if there is one.   problems: what does not fit.
    """

    path: Path
    format: str
    found: Recognised
    tensors: int
    files: list[StoredFile]
    config: dict[str, Any]
    config_file: Path | None
    vocabulary: tuple[Path, int] | None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON has."""
        found, stack = self.found, self.found.config.main
        return {
            "path": str(self.path),
            "family": found.family,
            "candidates": found.candidates,
            "parameters": found.parameters,
            "vocab_rows": found.sizes["vocab_size"],
            "dtype": found.dtype,
            "released": found.released,
            "format": self.format,
            "names": found.format,
            "sizes": {
                name: getattr(stack, name)
                for name in ("num_layers", "hidden_size", "num_heads", "head_dim", "feed_forward", "context")
            },
            "tensors": self.tensors,
            "model_tensors": found.own,
            "optimizer_slots": {reason: count for reason, count in found.left.items() if reason in _SLOTS},
            "left": found.left,
            "files": [
                {"name": file.path.name, "bytes": file.bytes, "expected_bytes": file.expected, "sha256": file.sha256}
                for file in self.files
            ],
            "config_file": None if self.config_file is None else str(self.config_file),
            "config": self.config,
            "vocabulary": None if self.vocabulary is None else str(self.vocabulary[0]),
            "words": None if self.vocabulary is None else self.vocabulary[1],
            "missing": found.missing,
            "unexpected": found.unexpected,
            "notes": self.notes,
            "problems": self.problems,
        }


def inspect(
    path: str | Path, *, sha256: bool = False, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Describe one checkpoint.

    path: as for `open_source`.   sha256: sum the data files up, and compare the sum with the released checkpoint's.
    progress: called with (bytes summed, bytes in all).
    Raises MissingFile, CheckpointError for what no family has the names of, CorruptFile for a damaged index or header.
    """
    location = locate(path)
    with open_source(location) as source:
        found, config_file, config, problems = _recognise(source, location)
        stored = source.inner if isinstance(source, Renamed) else source
        tensors, quantized = len(stored.tensors), isinstance(stored, Quantized)
    expected: dict[Path, int | None] = dict.fromkeys(location.data_files)
    if location.format == "tensorflow":
        from hanmo.checkpoint.tf.bundle import expected_sizes

        expected = dict(expected_sizes(location.path))
    files = [StoredFile(file, file.stat().st_size if file.is_file() else None, end) for file, end in expected.items()]
    problems += found.mismatches
    if found.missing:
        problems.append(f"tensors of the model that are missing: {len(found.missing)}, first {found.missing[0]}")
    if found.unexpected:
        problems.append(f"tensors that fit no {found.family}: {len(found.unexpected)}, first {found.unexpected[0]}")
    notes = list(found.notes)
    if quantized:
        notes.append("matrices are stored in 8 bits with a scale for each row, and read as float32")
    if all(file.bytes is None for file in files):
        notes.append(f"only the index is here; the data has {sum(file.expected or 0 for file in files):,} bytes")
    else:
        problems += [problem for file in files if (problem := _size_problem(file))]
    if sha256:
        files = _sum_up(files, progress)
        if len(files) == 1 and found.sha256 not in (None, files[0].sha256):
            problems.append(
                f"SHA256 of {files[0].path.name} is {files[0].sha256}, the released file's is {found.sha256}: "
                f"it was damaged on the way, or trained further"
            )
    vocabulary = None
    words_file = location.folder / "vocab.txt"
    if words_file.is_file():
        data = read_bytes(words_file)
        # Only '\n' ends a word: vocabularies hold U+2028 and the like.
        words, rows = data.count(b"\n") + (data[-1:] not in (b"", b"\n")), found.sizes["vocab_size"]
        vocabulary = words_file, words
        if words > rows or rows - words > SPARE:
            problems.append(f"vocab.txt has {words:,} words, the embedding {rows:,} rows")
    return Inspection(
        location.path, location.format, found, tensors, files, config, config_file, vocabulary, notes, problems
    )


def _recognise(source: Source, location: Location) -> tuple[Recognised, Path | None, dict[str, Any], list[str]]:
    """Recognise by the configuration beside the checkpoint, or by shapes if it is none; return what is wrong too."""
    path = location.config
    if "token.weight" in source.tensors:
        if (config := read_own_config(source)) is None:
            raise MissingFile(f"{source.path} has Hanmo's own names but no hanmo.json beside it; copy it there")
        return recognise_own(source, config), location.own_config, json.loads(config.to_json()), []
    problems = []
    if path is not None:
        try:
            data = read_json(path, error=ConfigError)
            found = recognise(source, config=data)
            return found, path, data | found.fixes, []
        except ConfigError as error:
            problems = [str(error) if str(path) in str(error) else f"{path}: {error}"]
    found = recognise(source)
    return found, path, found.names.original(found.config), problems


def _size_problem(file: StoredFile) -> str:
    if file.bytes is None:
        size = "" if file.expected is None else f"; it has {file.expected:,} bytes"
        return f"{file.path.name} is not here{size}"
    if file.expected is not None and file.bytes < file.expected:
        return f"{file.path.name} has {file.bytes:,} bytes of {file.expected:,}: it is cut short, download it again"
    return ""


def _sum_up(files: list[StoredFile], progress: Callable[[int, int], None] | None) -> list[StoredFile]:
    if missing := [file.path for file in files if file.bytes is None]:
        raise MissingFile(f"{missing[0]} is not here, so it has no SHA256; leave sha256 out to see the rest")
    total, done = sum(file.bytes or 0 for file in files), 0
    summed = []
    for file in files:
        digest = hashlib.sha256()
        with open_file(file.path, buffering=0) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        summed.append(replace(file, sha256=digest.hexdigest()))
    return summed
