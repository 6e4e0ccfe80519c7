"""Load the model at a path: configuration, network, weights and tokenizer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoint.load import Report, as_dtype, fill
from hanmo.checkpoint.match import plan
from hanmo.checkpoint.open import locate, open_source
from hanmo.checkpoint.source import Source
from hanmo.checkpoint.vocabulary_edit import VocabularyEdit
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.pipeline import SMALL, find_tokenizer
from hanmo.tokenizers.bert_rules import PreTokenize
from hanmo.tokenizers.load import tokenizer_files
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training.lora import base_of, load_lora, merge_lora


def load(
    path: str | Path = SMALL,
    *,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    mask: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    tokenizer: str | Path | Tokenizer | None = None,
    pre_tokenize: bool | PreTokenize | None = None,
    edit: VocabularyEdit | None = None,
    verify: bool = True,
    progress: Callable[[int], None] | None = None,
) -> ModelPipeline:
    """Load a checkpoint in any format that `inspect` recognises; without a path, the small model of the package.

    config: a config.json, or a ready ModelConfig, where none is beside the checkpoint or another is wanted.
    family: where the names fit several.   mask: "causal" or "prefix" lets a BERT-like encoder write (UniLM).
    dtype: of the weights, torch's own or "bfloat16"; None keeps the file's.   edit: a change of the vocabulary.
    verify: check the checksums.
    tokenizer: a vocabulary file or folder, or a ready tokenizer; None takes the one beside the checkpoint, if any.
    pre_tokenize: cut texts into words first: True by jieba, or a function; None where the vocabulary holds words.
    progress: called with the bytes of each tensor that is in.
    A training run's folder means its best checkpoint; LoRA adapters are merged into the model they belong to.
    Raises MissingFile, CheckpointError (CorruptFile, TensorMismatch) or ConfigError; nothing is filled halfway.
    """
    found = locate(path)
    if found.format == "adapters":
        return _adapted(
            found.path, dtype=dtype, device=device, tokenizer=tokenizer, pre_tokenize=pre_tokenize, edit=edit,
            verify=verify, progress=progress,
        )  # fmt: skip
    with open_source(found, verify=verify) as source:
        model, report = load_network(
            source, config=config, family=family, mask=mask, dtype=dtype, edit=edit, progress=progress
        )
    try:
        model = model.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # torch's ways of saying that there is no such device
        raise ConfigError(
            f"device is {str(device)!r}, which torch cannot use here: {str(error).splitlines()[0]}"
        ) from None
    if tokenizer is None or isinstance(tokenizer, str | Path):
        tokenizer = find_tokenizer(source.path, tokenizer, model.config, pre_tokenize=pre_tokenize)
    return ModelPipeline(model.config, model, tokenizer, report, source.path)


def _adapted(adapters: Path, *, tokenizer: str | Path | Tokenizer | None, **options: Any) -> ModelPipeline:
    """Load the base model that adapter_config.json names, and merge the adapters into it."""
    base, given = base_of(adapters)
    options |= given
    if tokenizer is None and tokenizer_files(adapters.parent):
        tokenizer = adapters.parent
    try:
        loaded = load(base, tokenizer=tokenizer, **options)
    except MissingFile as error:
        raise MissingFile(
            f"{adapters} holds adapters of the model at {base}, which cannot be loaded ({error}); correct its path in "
            f"{adapters.parent / 'adapter_config.json'}, or load the folder `merged` of the run"
        ) from None
    load_lora(loaded.model, adapters)
    merge_lora(loaded.model)
    return ModelPipeline(loaded.config, loaded.model.eval(), loaded.tokenizer, loaded.report, adapters)


def load_network(
    source: Source,
    *,
    config: str | Path | ModelConfig | None = None,
    family: str | None = None,
    mask: str | None = None,
    dtype: torch.dtype | str | None = None,
    edit: VocabularyEdit | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Model, Report]:
    """Make and fill the network alone, from an open checkpoint; all as in `load`."""
    kind = as_dtype(dtype)
    found, rows = plan(source, config=config, family=family)
    changed = found.config
    if edit is not None:
        changed = replace(changed, vocab_size=edit.size(changed.vocab_size))
    if mask is not None:
        if changed.decoder is not None:
            raise ConfigError(f"mask is {mask!r}, but a {found.family} writes already; leave mask out")
        changed = changed.with_mask(mask)
    with torch.device("meta"):
        model = Model(changed)
    return model, fill(model, source, rows, dropped=found.dropped, dtype=kind, edit=edit, progress=progress)
