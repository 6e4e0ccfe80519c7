"""Generate on the machines of a Ray cluster: each worker reads its rows from the file and returns lines.

Knows Ray Data and windows of rows. A window whose worker dies is computed again elsewhere, with the same result, as its
texts depend on its rows and their batches alone.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from hanmo import errors
from hanmo.batch.rows import read_lines, read_rows
from hanmo.batch.work import BatchWriter, Line, window_rows
from hanmo.errors import ConfigError, HanmoError, MissingExtra
from hanmo.pipeline import Pipeline


def write_on_cluster(
    prompts: Path,
    open_model: Callable[[], Pipeline],
    options: Mapping[str, Any],
    *,
    start: int = 0,
    number: int = 0,
    done: int = 0,
    gpus: bool | None = None,
) -> Iterator[list[Line]]:
    """Do as `BatchWriter.write` does with the rows behind `start` bytes and `number` lines, on every machine.

    prompts: a path that all machines see, as must the paths of the model.   open_model: is sent to the workers.
    done: the number of the last row that has its line, which is of the first window.
    options: of `BatchWriter`.   gpus: a worker for each GPU; False, one for each machine; None, what the cluster has.
    Raises MissingExtra without Ray, ConfigError without a cluster, and what a worker raises that is no row's fault.
    """
    ray = _connect()
    size = window_rows(**{name: options[name] for name in ("batch", "n", "beams")})
    windows = []
    lines = read_lines(prompts, start=start, number=number)
    while ends := [(line, end) for line, end, _ in islice(lines, size)]:
        windows.append({"start": start, "number": number, "rows": len(ends)})
        number, start = ends[-1]
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    available = int(ray.cluster_resources().get("GPU", 0))
    if gpus is not False and available:
        workers, resources = available, {"num_gpus": 1}
    elif gpus:
        raise ConfigError("the device is a GPU, and the Ray cluster has none; leave device out")
    else:
        machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        resources = {"num_cpus": min(filter(None, machines))}  # so that every machine has room for a worker
        workers = sum(machine // resources["num_cpus"] for machine in machines)
    results = ray.data.from_items(windows, override_num_blocks=len(windows)).map_batches(
        _Worker,
        batch_size=1,
        fn_constructor_args=(os.getcwd(), prompts, open_model, dict(options), done),
        compute=ray.data.ActorPoolStrategy(size=workers),
        **resources,
    )
    for result in results.iter_rows():
        answer = json.loads(result["answer"])
        if isinstance(answer, dict):
            raise getattr(errors, answer["error"], HanmoError)(answer["message"])
        yield [Line(*line) for line in answer]


class _Worker:
    """A Ray actor that opens the model for its first window and keeps it."""

    def __init__(self, folder: str, prompts: Path, *arguments: Any) -> None:
        self._folder, self._prompts, self._arguments = folder, prompts, arguments
        self._work: BatchWriter | None = None

    def __call__(self, windows: Mapping[str, Any]) -> dict[str, list[str]]:
        """Compute one window and return its lines as JSON, or an error that no single row caused."""
        start, number, rows = (int(windows[name][0]) for name in ("start", "number", "rows"))
        open_model, options, done = self._arguments
        try:
            if self._work is None:
                os.chdir(self._folder)  # relative paths are those of the command
                self._work = BatchWriter(open_model(), **options)
            wanted = islice(read_rows(self._prompts, start=start, number=number), rows)
            answer: Any = [line for lines in self._work.write(wanted, done=done) for line in lines]
        except (HanmoError, OSError) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        return {"answer": [json.dumps(answer)]}


def _connect() -> Any:
    """Import ray and connect it to the running cluster."""
    try:
        import ray.data
    except ImportError:
        raise MissingExtra("work on a cluster needs Ray; install it with: pip install 'hanmo[ray]'") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError:
            raise ConfigError(
                "no Ray cluster is found; start one with `ray start --head`, or set RAY_ADDRESS to one that runs, and "
                "RAY_AUTH_MODE=token if that one needs a token"
            ) from None
    return ray
