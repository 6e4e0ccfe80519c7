"""Export a task for other programs.

huggingface    BertForSequenceClassification, BertForTokenClassification and their kin: a folder for transformers
onnx           encoder and head as one graph, model.onnx, with the task and the vocabulary beside it
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.checkpoint.save import Saved, add_files, save
from hanmo.checkpoint.staged import atomic_folder
from hanmo.errors import CheckpointError, ConfigError
from hanmo.export.huggingface import huggingface_files
from hanmo.tasks.classify import Classify
from hanmo.tasks.config import TASK_JSON
from hanmo.tasks.pipeline import TaskPipeline
from hanmo.tasks.read import Read
from hanmo.tasks.tag import Tag
from hanmo.tasks.task import Task, TaskNetwork, new_pooler
from hanmo.tokenizers.load import tokenizer_files

FORMS = ("huggingface", "onnx")

OPSET = 18
"""Version of ONNX's operators; ONNX Runtime knows it since 1.14."""

ONCE = ("classify", "tag", "spans", "relate", "events", "embed", "read", "read_mlm", "few")
"""Kinds whose network runs once over each window."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs of the graph, int64 [windows, n]; the mask is 0 for padding."""


@dataclass(frozen=True)
class _Classes:
    """The classes of a family in transformers.

    word: their names begin with it.   dense: the layer that pools, if it is a part of the head there.
    """

    word: str
    dense: str = ""


_DENSE = "classifier.dense"
_CLASSES = {
    "bert": _Classes("Bert"),
    "albert": _Classes("Albert"),
    "roberta": _Classes("Roberta", _DENSE),
    "xlm_roberta": _Classes("XLMRoberta", _DENSE),
    "camembert": _Classes("Camembert", _DENSE),
    "electra": _Classes("Electra", _DENSE),
    "roformer": _Classes("RoFormer", _DENSE),
}
_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def export(
    pipeline: TaskPipeline,
    path: str | Path,
    *,
    form: str = "huggingface",
    drop_transitions: bool = False,
    overwrite: bool = False,
) -> Saved:
    """Write a folder that another program reads; the notes say what it does otherwise than `predict`.

    form: "huggingface", for transformers' classes of the kinds "classify", "tag" and "read"; or "onnx", for kinds whose
    network runs once over each window.
    drop_transitions: give transformers a CRF or MEMM, which it does not have, as the linear layer alone.
    Raises ConfigError for an unknown form, and for transitions that would be lost; CheckpointError for a kind, family
    or pooling that the form does not have, and if the extra hanmo[onnx] is not installed.
    """
    if form not in FORMS:
        raise ConfigError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    folder = pipeline.path if pipeline.path.is_dir() else pipeline.path.parent
    files = huggingface_files(pipeline.config, pipeline.task.tokenizer, tokenizer_files(folder))
    if form == "onnx":
        return _to_onnx(pipeline, Path(path), files, overwrite=overwrite)
    names, data = _in_transformers(pipeline)
    notes = _of_transitions(pipeline.task, drop_transitions) + _left_out(pipeline.task)
    labels = columns(pipeline.task)
    given = files.get("config.json")
    files["config.json"] = {
        **(given if isinstance(given, dict) else {}),
        **data,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    network = pipeline.network
    saved = save(
        network.backbone, path, form=form, tokenizer=files, head=network.head, head_names=names, overwrite=overwrite
    )
    return Saved(saved.path, saved.notes + notes)


def columns(task: Task) -> tuple[str, ...]:
    """Return the names of a head's outputs: the labels, or the tags of "tag"."""
    if isinstance(task, Tag):
        return task.scheme.tags
    return task.config.labels or {"classify": ("score",), "read": ("start", "stop")}.get(task.config.kind, ())


def _in_transformers(pipeline: TaskPipeline) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the names of the head's tensors in transformers, and what config.json says of its class."""
    task, config = pipeline.task, pipeline.config
    if not isinstance(task, Tag | Classify | Read):
        raise CheckpointError(
            f"transformers has no class for kind {task.config.kind!r}, only for 'classify', 'tag' and 'read'; "
            "use form='onnx'"
        )
    if config.family not in _CLASSES:
        raise CheckpointError(
            f"transformers has no class of {config.family} with a head, only of {', '.join(_CLASSES)}; use form='onnx'"
        )
    if config.main.mask != "full":
        raise CheckpointError(
            f"attention is {config.main.mask!r}, and 'full' in transformers' {config.family}; use form='onnx'"
        )
    classes = _CLASSES[config.family]
    if isinstance(task, Tag):
        return _layer("head.linear", "classifier"), {"architectures": [f"{classes.word}ForTokenClassification"]}
    if isinstance(task, Read):
        return _layer("head.linear", "qa_outputs"), {"architectures": [f"{classes.word}ForQuestionAnswering"]}
    needed, pooling = new_pooler(config), task.pooling
    if pooling != "pooler" or config.pool != needed:
        ours = f"the pooler's activation is {config.pool!r}" if pooling == "pooler" else f"pooling is {pooling!r}"
        raise CheckpointError(
            f"{ours}, and {classes.word}ForSequenceClassification has a pooler with {needed!r} alone; use form='onnx'"
        )
    data = {
        "architectures": [f"{classes.word}ForSequenceClassification"],
        "problem_type": _PROBLEMS[task.config.form],
    }
    if not classes.dense:
        return _layer("head.linear", "classifier"), data
    return _layer("head.linear", "classifier.out_proj") | _layer("pooler.dense", classes.dense), data


def _layer(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def _of_transitions(task: Task, drop: bool) -> list[str]:
    """Return what becomes of transitions in transformers. Raises ConfigError if they may not be dropped."""
    head = task.config.head
    if not isinstance(task, Tag) or head == "softmax":
        return []
    if not drop:
        raise ConfigError(
            f"head is {head!r}, and transformers has no transitions between tags: it would take the best tag of each "
            "token; accept that with drop_transitions=True, or use form='onnx', which keeps them"
        )
    return [f"the {head}'s transitions are left out"]


def _left_out(task: Task) -> list[str]:
    """Return what `predict` does beside the network, which other programs have to do themselves."""
    config = task.config
    notes = ["a text longer than the model's limit of tokens is not divided into windows"]
    if isinstance(task, Tag):
        notes.append("each token has its scores; predict takes the best tags that may follow one another (Viterbi)")
    if config.temperature != 1:
        notes.append(f"its probabilities are of logits that are not divided by the temperature {config.temperature:g}")
    if config.kind == "embed":
        notes.append("vectors are of length 1; predict averages those of windows first, by their length")
    if config.thresholds:
        of = "of an answer" if isinstance(task, Read) else "of labels"
        notes.append(f"the thresholds {of} are not in it; task.json has them")
    return notes


class _Graph(nn.Module):
    """The network as a function of three arrays; its outputs as a tuple, with their names in `names`."""

    def __init__(self, network: TaskNetwork) -> None:
        super().__init__()
        self.network = network
        self.names: list[str] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        """Take [windows, n] each, int64."""
        batch = {"ids": input_ids, "segments": token_type_ids, "mask": attention_mask.bool()}
        several = self.network.task.config.kind == "embed"  # whose batches have an axis of texts
        outputs = self.network({name: each[:, None] for name, each in batch.items()} if several else batch)
        if several:
            outputs = {"vector": nn.functional.normalize(outputs, dim=-1)}
        elif isinstance(outputs, Tensor):
            outputs = {"logits": outputs}
        elif hasattr(outputs, "_asdict"):
            outputs = outputs._asdict()
        else:
            outputs = {f"scores_{number}": each for number, each in enumerate(outputs)}
        found = {name: each for name, each in outputs.items() if each is not None}
        self.names = list(found)
        return tuple(each[:, 0] if several else each for each in found.values())


def _to_onnx(
    pipeline: TaskPipeline, path: Path, files: Mapping[str, Path | dict[str, Any]], *, overwrite: bool
) -> Saved:
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise CheckpointError(f"{missing[0]} is not installed; install it with: pip install 'hanmo[onnx]'")
    task = pipeline.task
    if task.config.kind not in ONCE or task.config.head == "casrel":
        raise CheckpointError(
            f"kind {task.config.kind!r}{' of CasRel' * (task.config.head == 'casrel')} runs its network more than once "
            f"for a text, which form 'onnx' does not hold; it is for {', '.join(ONCE)}"
        )
    graph = _Graph(pipeline.network.in_torch().float().cpu()).eval()
    inputs = {name: torch.ones(2, 8, dtype=torch.long) for name in INPUTS}
    inputs["token_type_ids"] *= 0
    with torch.inference_mode():
        graph(**inputs)  # which fills its names
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            dynamo=True,
            input_names=list(inputs),
            output_names=graph.names,
            dynamic_shapes=dict.fromkeys(inputs, axes),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["columns"] = json.dumps(columns(task), ensure_ascii=False)
    with atomic_folder(path, overwrite=overwrite) as folder:
        program.save(folder / "model.onnx")
        add_files(folder, {name: file for name, file in files.items() if name != "config.json"})
        add_files(folder, {TASK_JSON: task.config.to_dict()})
    return Saved(path, _left_out(task))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings of torch's exporter: of what torch deprecates, and of packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
