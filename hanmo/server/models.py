"""The models that are served: opened once, each with a thread that generates and one for everything else."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hanmo import __version__
from hanmo.checkpoint.inspect import inspect
from hanmo.checkpoint.open import INCLUDED, locate
from hanmo.cores import available_memory
from hanmo.errors import ConfigError, MissingFile
from hanmo.generate.dynamic import DynamicEngine, is_dynamic
from hanmo.generate.loop import QueueingEngine
from hanmo.generate.options import Speculation
from hanmo.generate.scheduler import Scheduler
from hanmo.inference import store
from hanmo.opening import open_model
from hanmo.pipeline import Pipeline
from hanmo.server.errors import RequestError
from hanmo.server.model_thread import ModelThread, check_wanted
from hanmo.tokenizers.protocol import Tokenizer

if TYPE_CHECKING:
    from hanmo.model_pipeline import ModelPipeline
    from hanmo.tasks.pipeline import TaskPipeline

Opened = TypeVar("Opened", bound=Pipeline)


@dataclass(eq=False)
class Served:
    """One model.

    scheduler: None for a model that does not generate.   fingerprint: of the weights and of what computes them.
    speculation: whether its rows draft ids; see `GenerationConfig`.
    max_queue: requests that wait for `thread`, in which beams, vectors, masks and tasks are computed.
    """

    name: str
    pipeline: Pipeline
    fingerprint: str
    scheduler: Scheduler | None = None
    speculation: Speculation = "auto"
    max_queue: int = 256
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.thread = ModelThread(self.max_queue)
        if hasattr(self.pipeline, "model"):
            self.pipeline.model.register_forward_pre_hook(check_wanted)
        self._strings: dict[int, str] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        assert self.pipeline.tokenizer is not None  # `open_served` checks it
        return self.pipeline.tokenizer

    @property
    def generator(self) -> Scheduler:
        """The scheduler. Raises RequestError if the model does not generate."""
        if self.scheduler is None:
            raise RequestError(f"the model {self.name!r} does not generate text", param="model")
        return self.scheduler

    @cached_property
    def scheduler_owns_device(self) -> bool:
        """Whether nothing but the scheduler may compute, as on a GPU."""
        return self.scheduler is not None and isinstance(self.pipeline.engine, QueueingEngine)

    @property
    def network(self) -> "ModelPipeline":
        """The pipeline with its network. Raises RequestError for one that is for generation alone."""
        if not hasattr(self.pipeline, "encode"):
            raise RequestError(
                f"the model {self.name!r} is opened for generation alone; serve an encoder for this",
                param="model",
            )
        if self.scheduler_owns_device:
            message = f"the scheduler alone uses the GPU of the model {self.name!r}; serve it on a CPU for this"
            raise RequestError(message, param="model")
        found: Any = self.pipeline
        return found

    @property
    def task(self) -> "TaskPipeline":
        """The pipeline of a task. Raises RequestError for another model."""
        if not hasattr(self.pipeline, "predict"):
            raise RequestError(f"the model {self.name!r} is no task", status=404, code="task_not_found")
        found: Any = self.pipeline
        return found

    @cached_property
    def abilities(self) -> list[str]:
        """What it answers: "completions", "embeddings", "fill", "tasks".

        "answers": its completions are answers to a prompt, as of T5, and do not go on from it.
        """
        config, found = self.pipeline.config, ["completions"] if self.scheduler else []
        if self.scheduler and (config.is_encoder_decoder or config.main.mask == "prefix"):
            found.append("answers")
        if hasattr(self.pipeline, "encode") and config.main.mask != "prefix" and not self.scheduler_owns_device:
            found.append("embeddings")
            if config.is_encoder_decoder or (config.output != "none" and config.main.mask == "full"):
                found.append("fill")
        return found + ["tasks"] * hasattr(self.pipeline, "predict")

    @property
    def mask(self) -> str | None:
        """What stands for a missing token in a text for /v1/fill; None if it does not fill."""
        if "fill" not in self.abilities:
            return None
        mask = self.tokenizer.special.mask
        return "[MASK]" if mask is None else self.tokenizer.id_to_token(mask)  # T5 has none and reads this one

    def check_ids(self, ids: Iterable[int], *, param: str) -> None:
        """Raise RequestError if the vocabulary lacks one of these ids of a request's field."""
        size = self.tokenizer.vocab_size
        if (outside := next((id for id in ids if id >= size), None)) is not None:
            raise RequestError(f"{param} holds id {outside}; the vocabulary has ids 0 to {size - 1}", param=param)

    def string(self, id: int) -> str:
        """Return the text of one id: of an incomplete character, and of a special token, its name."""
        if id not in self._strings:
            if id >= self.tokenizer.vocab_size:  # a row of the model without a token
                return f"[{id}]"
            text = self.tokenizer.decode([id])
            self._strings[id] = self.tokenizer.id_to_token(id) if not text or "\ufffd" in text else text
        return self._strings[id]

    def close(self) -> None:
        """End its threads; rows that have not ended fail with SchedulerClosed."""
        if self.scheduler is not None:
            self.scheduler.close(drain=False)
        self.thread.close()


class Models(dict[str, Served]):
    """The models by name."""

    def find(self, name: str | None) -> Served:
        """Return the model of a request. Raises RequestError for a name that is not served."""
        if name is None and len(self) == 1:
            return next(iter(self.values()))
        if name is None:
            raise RequestError(f"model is missing; served are {', '.join(self)}", param="model")
        if name not in self:
            message = f"the model {name[:80]!r} is not served; served are {', '.join(self)}"
            raise RequestError(message, status=404, param="model", code="model_not_found")
        return self[name]


def name_of(path: Path) -> str:
    """Return the name under which a checkpoint is served: that of its folder."""
    if path in INCLUDED.values():
        return f"hanmo-{path.name}"
    folder = path if path.is_dir() else path.parent
    return folder.resolve().name


def open_served(
    name: str,
    path: Path,
    *,
    weights: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    speculation: Speculation = "auto",
    max_rows: int = 32,
    max_queue: int = 256,
    cache_memory: int | None = None,
    models: int = 1,
    mask: str | None = None,
    **reading: Any,
) -> Served:
    """Open a checkpoint, an encoder or the folder of a task.

    weights, device, threads: as for `open_model`; an encoder takes "float32", "bfloat16" or "int8" by OpenVINO.
    speculation: as for `GenerationConfig`.   max_rows, max_queue: as for `Scheduler`.
    cache_memory: bytes of the keys and values of texts that are generated; None is half of what is free, divided by
    the `models` that are served.
    mask, reading: as for `hanmo.load`.
    Raises what `hanmo.load` raises, ConfigError, and MissingFile without a vocabulary.
    """
    found = locate(path)
    described = None if found.format == "adapters" else inspect(path).found
    kind, read = weights or (described.dtype if described else "float32"), {"mask": mask, **reading}
    is_task = (found.folder / "task.json").is_file()
    if (described is None or described.config.can_generate or mask is not None) and not is_task:
        pipeline = _with_vocabulary(open_model(path, weights=weights, device=device, threads=threads, **read))
        engine = pipeline.engine
        rounding = "joined" if isinstance(engine, DynamicEngine) and engine.dynamic_rows() is not None else "batched"
        rounding = "fixed" if kind == "float32" or is_dynamic(engine) else rounding
        cache_ids = _cache_ids(engine, cache_memory, models)
        scheduler = Scheduler(engine, max_rows=max_rows, max_queue=max_queue, cache_ids=cache_ids)
        return Served(name, pipeline, _fingerprint(path, read, kind, rounding), scheduler, speculation, max_queue)
    from hanmo.cores import set_torch_threads
    from hanmo.tasks.pipeline import load

    if weights == "int4":
        raise ConfigError(f"weights is 'int4', and {path} is an encoder; expected float32, bfloat16 or int8")
    set_torch_threads(threads)
    if mask is not None:
        raise ConfigError(f"mask is {mask!r}, and {path} is the folder of a task, which writes no text; leave mask out")
    encoder = _with_vocabulary(load(path, device="cpu" if device == "auto" else device, **reading))
    if weights is not None:
        encoder.use_openvino(weights=weights, threads=threads)
    return Served(name, encoder, _fingerprint(path, read, kind, "fixed"), max_queue=max_queue)


def _with_vocabulary(pipeline: Opened) -> Opened:
    if pipeline.tokenizer is None:
        raise MissingFile(f"there is no vocabulary beside {pipeline.path}; put its vocab.txt or *.model there")
    return pipeline


def _cache_ids(engine: Any, memory: int | None, models: int) -> int:
    """Return for how many ids' keys and values there is memory; see `open_served`."""
    if memory is None and (device := getattr(engine, "device", None)) is not None:  # a GPU
        from hanmo.training.memory import free_memory

        memory = free_memory(device) // 2 // models
    found: int = (available_memory() // 2 // models if memory is None else memory) // engine.token_bytes
    return found


def _fingerprint(path: Path, reading: Mapping[str, Any], weights: str, rounding: str) -> str:
    """Name what a text with a seed depends on.

    reading: options of `hanmo.load`, None where not given.
    rounding: "fixed" if rows are computed as alone, "batched" if those of one prompt are computed together, "joined" if
    those of all prompts are.
    """
    given = {name: str(value) for name, value in sorted(reading.items()) if value is not None}
    digest = hashlib.blake2b(f"{store.identity(path)}{given or ''}".encode(), digest_size=4).hexdigest()
    return f"hanmo-{__version__}-{weights}-{rounding}-{digest}"
