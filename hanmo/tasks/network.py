"""A backbone with the head of a task: built from a checkpoint, saved, read again.

Knows networks and folders. Knows no data and no training.

    hanmo.json          configuration of the backbone
    model.safetensors   its weights under Hanmo's names, those of the head as head.…
    task.json           the task
    vocab.txt …         the tokenizer
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from hanmo.checkpoint.load import as_tensor
from hanmo.checkpoint.open import Location, open_source
from hanmo.checkpoint.save import save
from hanmo.checkpoint.shapes import TASK_HEAD
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MissingFile, TensorMismatch
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.nn.norm import Norm
from hanmo.pipeline import find_tokenizer
from hanmo.tasks.config import TASK_JSON, TaskConfig
from hanmo.tasks.task import Task, TaskNetwork
from hanmo.tokenizers.added import read_object
from hanmo.tokenizers.load import tokenizer_files
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.wordpiece import WordPiece
from hanmo.tokenizers.words import split_words
from hanmo.training.lora import has_lora, merge_lora

Files: TypeAlias = Mapping[str, Path | dict[str, Any]]
"""Files to copy along by their new names, or JSON to write."""


def build(model: Model, task: Task, *, seed: int = 0) -> TaskNetwork:
    """Make the network of a task from a loaded model, whose weights are copied; what it lacks is initialized.

    Raises ConfigError if the task cannot use the model.
    """
    config = _with_dropout(task.network(model.config), task.config.dropout)
    backbone = Model(config).initialize(seed)
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    if config.decoder is None:  # a decoder that becomes an encoder
        state = {re.sub(r"^decoder\.", "encoder.", name): tensor for name, tensor in state.items()}
    backbone.load_state_dict(state, strict=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = task.head(config)
        for module in head.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=config.initializer)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for norm in (module for module in head.modules() if isinstance(module, Norm)):
            for layer in norm.children():  # as in bert4keras, a condition changes nothing before training
                nn.init.zeros_(layer.get_parameter("weight"))
    return TaskNetwork(backbone, head, task).to(model.token.weight.device)


def save_network(
    network: TaskNetwork, folder: Path, config: TaskConfig, files: Files, *, overwrite: bool = False
) -> None:
    """Write a folder that `hanmo.load` opens; adapters are merged into the weights.

    config: what task.json says.   files: of the tokenizer.
    """
    backbone = network.backbone
    if has_lora(backbone):
        backbone = deepcopy(backbone)
        merge_lora(backbone)
    save(backbone, folder, head=network.head, tokenizer={**files, TASK_JSON: config.to_dict()}, overwrite=overwrite)


def tokenizer_of(loaded: ModelPipeline, texts: Iterable[str] = ()) -> Files:
    """Return the tokenizer's files, which the task's folder takes along, by their names.

    texts: what the tokenizer of the files has to encode as the model's own does.
    Raises MissingFile if there are none, ConfigError if they hold another tokenizer than the model was loaded with.
    """
    folder = loaded.path if loaded.path.is_dir() else loaded.path.parent
    files: Files = {file.name: file for file in tokenizer_files(folder)}
    if not files:
        raise MissingFile(f"no vocabulary beside {loaded.path}, which a task needs; put its vocab.txt or *.model there")
    own = loaded._tokenizer()
    pre_tokenize = own.pre_tokenizes if isinstance(own, WordPiece) else None
    if isinstance(own, WordPiece) and own.pre_tokenize not in (None, split_words):
        raise ConfigError(
            "pre_tokenize is a function, which the task's folder cannot hold; load the model with pre_tokenize=True, "
            "which is jieba, or False"
        )
    found = find_tokenizer(folder, None, loaded.config)
    if isinstance(found, WordPiece) and pre_tokenize not in (None, found.pre_tokenizes):
        found = find_tokenizer(folder, None, loaded.config, pre_tokenize=pre_tokenize)
        described = read_object(folder / "tokenizer_config.json")
        files = {**files, "tokenizer_config.json": {**described, "pre_tokenize": pre_tokenize}}
    if found is None or not _alike(own, found, texts):
        raise ConfigError(
            f"the model was loaded with another tokenizer than the files in {folder} hold, which the task's folder "
            "takes along; put the right files beside the model"
        )
    return files


def _alike(one: Tokenizer, other: Tokenizer, texts: Iterable[str]) -> bool:
    if one.vocab_size != other.vocab_size or one.special != other.special:
        return False
    if any(one.id_to_token(number) != other.id_to_token(number) for number in range(one.vocab_size)):
        return False
    return all(one.encode(text).ids == other.encode(text).ids for text in texts)


def read_head(location: Location, task: Task, model: Model) -> nn.Module:
    """Read the head of a task folder. Raises TensorMismatch if it is not there or is another task's."""
    head = task.head(model.config)
    ours = head.state_dict()
    with open_source(location) as source:
        found = {
            name.removeprefix(TASK_HEAD): info for name, info in source.tensors.items() if name.startswith(TASK_HEAD)
        }
        for name in sorted(set(ours) | set(found)):
            expected = tuple(ours[name].shape) if name in ours else "no such tensor"
            there = found[name].shape if name in found else "missing"
            if expected != there:
                raise TensorMismatch(
                    f"{TASK_HEAD}{name} in {source.path} is {there}, the task of {TASK_JSON} expects {expected}; "
                    "give the folder of a task as hanmo.tasks.fit wrote it"
                )
        state = {name: as_tensor(source.read(info.name), info.dtype) for name, info in found.items()}
    head.load_state_dict(state)
    return head.to(model.token.weight.device).eval()


def _with_dropout(config: ModelConfig, dropout: float | None) -> ModelConfig:
    if dropout is None:
        return config
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    changed = {side: replace(stack, dropout=float(dropout)) for side, stack in stacks.items() if stack is not None}
    return replace(config, **changed)  # type: ignore[arg-type]
