"""The errors Hanmo raises on bad input; each is also a builtin error, so old code catches it too.

Every message says what was wrong, where, what was expected and what to do next.
"""


class HanmoError(Exception):
    """The root of every error that Hanmo raises on purpose."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0]) if self.args else ""


class ConfigError(HanmoError, ValueError):
    """A config.json, or a field of one, that cannot be right."""


class CheckpointError(HanmoError, ValueError):
    """A checkpoint that does not fit, or is not what it says it is."""


class CorruptFile(CheckpointError):
    """Bytes that are damaged, cut short or hostile."""


class TensorMismatch(CheckpointError, KeyError):
    """Tensors that are missing, unexpected or of another shape."""


class MissingFile(HanmoError, FileNotFoundError):
    """A file that should be there and is not."""


class TokenizerError(HanmoError, ValueError):
    """A vocabulary or tokenizer file that cannot be used."""


class PromptError(HanmoError, ValueError):
    """A text that cannot be written on from."""


class DataError(HanmoError, ValueError):
    """A data file that cannot be trained on."""


class TrainingError(HanmoError, FloatingPointError):
    """A loss or gradients that stay inf or NaN, so that nothing more is learned."""


class MemoryPlanError(HanmoError, MemoryError):
    """Work that is known not to fit into memory before it starts."""


class QueueFull(HanmoError, RuntimeError):
    """More rows wait for a scheduler than its queue holds; try again later."""


class SchedulerClosed(HanmoError, RuntimeError):
    """A scheduler that takes no rows any more."""


class MissingExtra(HanmoError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""


class Unsupported(HanmoError, NotImplementedError):
    """A part of bert4keras that Hanmo does not carry; the message names the way that it offers."""


NotCarried = Unsupported  # its name in version 0.1
