"""Folders of tasks that were never trained: random weights of an encoder and a head."""

from pathlib import Path

from toy_tasks import model_folder

from hanmo.loading import load
from hanmo.tasks import TaskConfig
from hanmo.tasks.network import build, save_network
from hanmo.tasks.pipeline import TaskPipeline, open_task
from hanmo.tasks.table import make_task
from hanmo.tokenizers.load import tokenizer_files


def untrained(folder: Path, config: TaskConfig, **model: object) -> TaskPipeline:
    """Save a task on a tiny encoder with large random weights, and open it; model: of `model_folder`."""
    base = load(model_folder(folder / "base", **model))
    task = make_task(config, base.tokenizer)
    network = build(base.model, task)
    for parameter in network.head.parameters():
        parameter.data.mul_(10)
    save_network(network, folder / "task", config, tokenizer_files(base.path.parent))
    return open_task(folder / "task")
