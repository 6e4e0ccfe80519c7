"""The kinds of tasks. A new one is a line here."""

from hanmo.errors import ConfigError
from hanmo.tasks.classify import Classify
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.embed import Embed
from hanmo.tasks.events import Events
from hanmo.tasks.few import Few
from hanmo.tasks.read import Read
from hanmo.tasks.read_mlm import ReadMlm
from hanmo.tasks.read_seq2seq import ReadSeq2seq
from hanmo.tasks.relate import Relate
from hanmo.tasks.spans import Spans
from hanmo.tasks.tag import Tag
from hanmo.tasks.task import Task
from hanmo.tokenizers.protocol import Tokenizer

TASKS: dict[str, type[Task]] = {
    "classify": Classify,
    "tag": Tag,
    "spans": Spans,
    "relate": Relate,
    "events": Events,
    "embed": Embed,
    "read": Read,
    "read_mlm": ReadMlm,
    "read_seq2seq": ReadSeq2seq,
    "few": Few,
}


def task_class(kind: str) -> type[Task]:
    """Return the class of a kind. Raises ConfigError for an unknown one."""
    if kind not in TASKS:
        raise ConfigError(f"kind is {kind!r}; expected one of {', '.join(TASKS)}")
    return TASKS[kind]


def make_task(config: TaskConfig, tokenizer: Tokenizer) -> Task:
    """Make the task that a settled configuration describes."""
    return task_class(config.kind)(config, tokenizer)
