"""Load what lies at a path: recognise it, join configuration, model, weights and tokenizer.

The only place where all layers meet.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.families import Row
from hanmo.loaded import Loaded
from hanmo.model import Model
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.weights.edit import VocabularyEdit
from hanmo.weights.load import Report, fill
from hanmo.weights.recognise import Recognised, read_config, read_json, recognise, recognise_own, rename
from hanmo.weights.source import Source, open_source
from hanmo.weights.table import check_repeats
from hanmo.writer import find_tokenizer

OWN_CONFIG = "hanmo.json"


def load(
    path: str | Path,
    *,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    mask: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    tokenizer: str | Path | Tokenizer | None = None,
    edit: VocabularyEdit | None = None,
    verify: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """Load a checkpoint in any format that `inspect` recognises.

    config: a config.json, or a ready ModelConfig, where none lies beside the checkpoint or another is wanted.
    family: where the names fit several.   mask: "causal" or "prefix" lets a BERT-like encoder write (UniLM).
    dtype: of the weights; None keeps the file's.   edit: a change of the vocabulary.   verify: check the checksums.
    tokenizer: a vocabulary file or folder, or a ready tokenizer; None takes the one beside the checkpoint, if any.
    progress: called with the bytes of each tensor that is in.
    Raises MissingFile, CheckpointError (CorruptFile, TensorMismatch) or ConfigError; nothing is filled halfway.
    """
    with open_source(path, verify=verify) as source:
        model, report = load_network(
            source, config=config, family=family, mask=mask, dtype=dtype, edit=edit, progress=progress
        )
    try:
        model = model.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # torch's ways of saying that there is no such device
        raise ConfigError(
            f"device is {str(device)!r}, which torch cannot use here: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = find_tokenizer(source.path, tokenizer)
    return Loaded(model.config, model, tokenizer, report, source.path)


def load_network(
    source: Source,
    *,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    mask: str | None = None,
    dtype: torch.dtype | None = None,
    edit: VocabularyEdit | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Model, Report]:
    """Make and fill the network alone, from an open checkpoint; all as in `load`."""
    found, rows = plan(source, config=config, family=family)
    changes: dict[str, Any] = {}
    if edit is not None:
        changes["vocab"] = edit.size(found.config.vocab)
    if mask is not None:
        if found.config.decoder is not None:
            raise ConfigError(f"mask is {mask!r}, but a {found.family} writes already; leave mask out")
        side = "decoder" if found.config.decoder else "encoder"
        changes[side] = replace(found.config.main, mask=mask)
    with torch.device("meta"):
        model = Model(replace(found.config, **changes))
    dropped: Mapping[str, str] = {}
    if found.format != "hanmo":
        dropped, wanted = found.names.dropped, {row.theirs for row in rows}
        check_repeats(source, {name: other for name, other in found.names.repeats.items() if name not in wanted})
    return model, fill(model, source, rows, dropped=dropped, dtype=dtype, edit=edit, progress=progress)


def plan(
    source: Source, *, config: str | Path | ModelConfig | None = None, family: str | None = None
) -> tuple[Recognised, list[Row]]:
    """Recognise an open checkpoint and give the rows that fill its model.

    Raises ConfigError naming each field of config.json that does not fit, CheckpointError if nothing does.
    """
    folder = source.path.parent
    own = folder / OWN_CONFIG
    if config is None and own.is_file():
        config = ModelConfig.from_json(own.read_text("utf-8"))
    if isinstance(config, ModelConfig):
        return _by(source, config)
    data = read_config(folder) if config is None else _read(Path(config))
    found = recognise(source, config=data, family=family)
    if found.misfits:
        raise ConfigError(
            f"{source.path}: " + "; ".join(found.misfits) + "; mend config.json or take the one it came with"
        )
    if found.derived and any(note.startswith(("heads", "depth")) for note in found.notes):
        raise MissingFile(
            f"no config.json beside {source.path}, and its shapes do not tell {found.notes[0]}; "
            f"put the one it came with there, or the one that 'hanmo inspect' prints"
        )
    names = found.names
    return found, rename(names.rows(found.config), source.tensors, names.prefix)


def _by(source: Source, config: ModelConfig) -> tuple[Recognised, list[Row]]:
    """Plan by a ready configuration, in whichever names the file has; it may leave out a stack that the file holds."""
    if "token.weight" in source.tensors:
        found = recognise_own(source, config)
        if found.misfits:
            raise ConfigError(
                f"{source.path}: {'; '.join(found.misfits)}; give the configuration that it was saved with"
            )
        with torch.device("meta"):
            ours = dict(Model(config).named_parameters())
        return found, [Row((name,), name) for name in {**ours, **source.tensors}]
    found = recognise(source, family=config.family)
    stacks = {side: getattr(config, side) or getattr(found.config, side) for side in ("encoder", "decoder")}
    rows = rename(found.names.rows(replace(config, **stacks)), source.tensors, found.names.prefix)
    found.config, found.derived = config, False
    return found, rows


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFile(f"no configuration at {path}; give the config.json that belongs to the checkpoint")
    return read_json(path)
