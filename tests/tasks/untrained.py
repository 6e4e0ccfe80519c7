"""Folders of tasks that were never trained: random weights of an encoder and a head."""

from dataclasses import replace
from pathlib import Path

from toy_tasks import model_folder

from hanmo.checkpoint.save import save
from hanmo.loading import load
from hanmo.model import Model
from hanmo.tasks import TaskConfig
from hanmo.tasks.network import build, save_network, tokenizer_of
from hanmo.tasks.pipeline import TaskPipeline, open_task
from hanmo.tasks.table import make_task
from hanmo.tokenizers.load import tokenizer_files


def untrained(folder: Path, config: TaskConfig, *, family: str = "bert") -> TaskPipeline:
    """Save a task on a tiny encoder, the head with large random weights, and open it."""
    base = load(base_folder(folder / "base", family))
    task = make_task(config, base.tokenizer)
    network = build(base.model, task)
    for parameter in network.head.parameters():
        parameter.data.mul_(10)
    save_network(network, folder / "task", config, tokenizer_of(base))
    return open_task(folder / "task")


def base_folder(folder: Path, family: str) -> Path:
    """Write the encoder.

    RoBERTa, its kin and ALBERT are made of a BERT as transformers has them; RoFormers are published without a pooler.
    """
    changes = {
        **{family: {"position_offset": 1} for family in ("roberta", "xlm_roberta", "camembert")},
        "albert": {"embedding_size": 16, "shared_layers": True},
        "roformer": {},
    }
    if family not in changes:
        return model_folder(folder, family=family)
    base = load(model_folder(folder.with_name("from"), family="roformer" if family == "roformer" else "bert"))
    config = replace(base.config, family=family, nsp=False, encoder=replace(base.config.main, **changes[family]))
    config = replace(config, pool="none") if family == "roformer" else config
    save(Model(config).initialize(0), folder, tokenizer=tokenizer_files(base.path.parent))
    return folder
