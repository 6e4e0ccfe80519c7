"""What `hanmo.load` returns for the folder of a task: a model pipeline that predicts.

load(path)    any folder of a model; one with a task.json gives a TaskPipeline, one of kind "embed" an EmbedPipeline
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hanmo import loading
from hanmo.checkpoint.open import locate
from hanmo.errors import ConfigError, DataError, MissingFile
from hanmo.generate.rules import check_count
from hanmo.model_pipeline import ModelPipeline
from hanmo.pipeline import SMALL
from hanmo.tasks.batches import predict
from hanmo.tasks.config import TASK_JSON, TaskConfig
from hanmo.tasks.embed import Embed, EmbedHead, fit_whitening, nearest
from hanmo.tasks.network import read_head, save_network, tokenizer_of
from hanmo.tasks.readers import Source, read_data
from hanmo.tasks.rows import Item, Row, as_rows
from hanmo.tasks.table import make_task
from hanmo.tasks.task import Result, Task, TaskNetwork

if TYPE_CHECKING:
    from typing_extensions import Self


class TaskPipeline(ModelPipeline):
    """A pipeline with the head of a task; see `hanmo.load`.   task: its kind, with the configuration."""

    def __init__(self, loaded: ModelPipeline, head: nn.Module, task: Task) -> None:
        super().__init__(loaded.config, loaded.model, loaded.tokenizer, loaded.report, loaded.path)
        self.task = task
        self.network = TaskNetwork(loaded.model, head, task).eval()

    def use_openvino(self, *, weights: str = "float32", threads: int | None = None) -> "Self":
        super().use_openvino(weights=weights, threads=threads)
        self.network.backbone = self.model
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the task predicts."""
        return self.task.config.labels

    @overload
    def predict(self, texts: str | Mapping[str, Any], *, batch: int = ...) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Sequence[Item], *, batch: int = ...) -> list[Result]: ...
    def predict(self, texts: Item | Sequence[Item], *, batch: int = 32) -> Result | list[Result]:
        """Return the result of each text; docs/tasks.md shows those of each kind.

        texts: a text, or a list of texts, of pairs (a, b) or of rows as in training data; one text gives one result.
        batch: the most windows computed together; results do not depend on it beyond rounding.
        Raises DataError for an item that is none of these, or an empty text.
        """
        if isinstance(texts, str | Mapping | Row):
            return next(self.stream_results([texts], batch=batch))
        return list(self.stream_results(texts, batch=batch))

    def stream_results(self, texts: Iterable[Item], *, batch: int = 32) -> Iterator[Result]:
        """Yield results in order, with few texts in memory at once; see `predict`."""
        check_count("batch", batch)
        return predict(self.network, map(self.task.encode, as_rows(texts)), batch=batch)

    def evaluate(self, data: Source, *, batch: int = 32, format: str | None = None) -> dict[str, float]:
        """Score predictions on labelled data: a file, or rows.

        format: of the file, as for `hanmo.tasks.readers.read_data`.
        Raises DataError naming the line of a row that is wrong, or has a label that the task does not have.
        """
        return self.task.measure(*self.predict_labelled(data, batch=batch, format=format))

    def predict_labelled(
        self, data: Source, *, batch: int = 32, format: str | None = None
    ) -> tuple[list[Row], list[Result]]:
        """Return labelled rows and their results, which `hanmo.tasks.report` compares; see `evaluate`."""
        check_count("batch", batch)
        rows, task = read_data(data, format=format), self.task
        task.check_rows(rows, task.config, f"the task of {self.path}")
        return rows, list(predict(self.network, map(task.encode, rows), batch=batch))

    def save(self, path: str | Path, *, form: str = "safetensors", overwrite: bool = False) -> Path:
        """Save network, head, task and vocabulary as a folder, and return its path.

        Raises ConfigError for another form than "safetensors", MissingFile and ConfigError as `tokenizer_of` does.
        """
        if form != "safetensors":
            raise ConfigError(f"form is {form!r}; expected 'safetensors', which holds the head of a task")
        save_network(self.network, Path(path), self.task.config, tokenizer_of(self), overwrite=overwrite)
        return Path(path)


class EmbedPipeline(TaskPipeline):
    """A pipeline of kind "embed": vectors of texts, similarities, search."""

    def encode(self, texts: str | Sequence[str], *, pool: str | None = None, batch: int = 32) -> NDArray[np.float32]:
        """Encode texts as unit vectors [texts, features] of the task; one text counts as a list of one.

        pool: "mean", "first" or "pooler" gives vectors of the network alone, as a `ModelPipeline` does.
        """
        if pool is not None:
            return super().encode(texts, pool=pool, batch=batch)
        results = self.stream_results([texts] if isinstance(texts, str) else texts, batch=batch)
        found = [np.array(result["vector"], np.float32) for result in results]
        return np.array(found, np.float32).reshape(len(found), -1)

    def encode_ids(
        self, texts: Sequence[Sequence[int]], *, pool: str | None = None, batch: int = 32
    ) -> NDArray[np.float32]:
        if pool is None:
            raise ConfigError("a task divides and encodes texts itself; give texts, or pool for the network alone")
        return super().encode_ids(texts, pool=pool, batch=batch)

    def similarity(self, first: str | Sequence[str], second: str | Sequence[str]) -> NDArray[np.float32]:
        """Return the cosine of each of the first texts with each of the second [first, second]."""
        return self.encode(first) @ self.encode(second).T

    def search(
        self, queries: str | Sequence[str], vectors: NDArray[np.float32], *, k: int = 10
    ) -> list[list[tuple[int, float]]]:
        """Return for each query the k rows of vectors with the highest cosine, as (row, cosine), best first.

        vectors: [texts, features] as `encode` returns them, in memory or mapped from a file (`numpy.load`).
        Raises DataError for vectors of another size.
        """
        check_count("k", k)
        found = self.encode(queries)
        if vectors.ndim != 2 or vectors.shape[1] != found.shape[1]:
            raise DataError(f"vectors are {vectors.shape}; expected (texts, {found.shape[1]}), as encode returns them")
        return nearest(found, vectors, k)

    def whiten(self, texts: Sequence[str], *, size: int, batch: int = 32) -> None:
        """Make the covariance of these texts' vectors the identity, and keep the first `size` features.

        BERT-whitening (kexue.fm/archives/8069). `save` writes it with the task. Raises DataError for too few texts.
        """
        check_count("size", size)
        task, config = self.task, self.task.config
        assert isinstance(task, Embed)
        plain = make_task(replace(config, options=config.options | {"whitening": 0}), task.tokenizer)
        assert isinstance(plain, Embed)
        plain.unit = False
        network = TaskNetwork(self.model, plain.head(self.config), plain).eval()
        results = predict(network, map(plain.encode, as_rows(texts)), batch=batch)
        kernel, bias = fit_whitening(np.array([result["vector"] for result in results]), size)
        self.task = make_task(replace(config, options=config.options | {"whitening": size}), task.tokenizer)
        head = self.task.head(self.config)
        assert isinstance(head, EmbedHead)
        head.set_whitening(kernel, bias)
        self.network = TaskNetwork(self.model, head.to(self.model.token.weight.device), self.task).eval()


@wraps(loading.load)
def load(path: str | Path = SMALL, **options: Any) -> ModelPipeline:
    found = locate(path)
    return open_task(path, **options) if (found.folder / TASK_JSON).is_file() else loading.load(path, **options)


def open_task(path: str | Path, **options: Any) -> TaskPipeline:
    """Open the folder of a task; a training run's folder means its best checkpoint.

    options: of `hanmo.load`.
    Raises MissingFile if there is no task.json, TensorMismatch for weights without the head, and what loading raises.
    """
    found = locate(path)
    described = found.folder / TASK_JSON
    if not described.is_file():
        raise MissingFile(
            f"{described} is missing, so {path} is not the folder of a task; train one with hanmo.tasks.fit"
        )
    config = TaskConfig.read(described)
    loaded = loading.load(path, **options)
    context = loaded.config.main.context
    try:
        if context is not None and (config.max_length or 0) > context:
            raise ConfigError(f"max_length is {config.max_length}; the model knows {context} positions")
        config = replace(config, max_length=config.max_length or min(512, context or 512))
        task = make_task(config, loaded._tokenizer())
    except ConfigError as error:
        raise ConfigError(f"{described}: {error}") from None
    kind = EmbedPipeline if isinstance(task, Embed) else TaskPipeline
    return kind(loaded, read_head(found, task, loaded.model), task)
