"""bert4keras.backend, as far as scripts that read and write need it."""

from hanmo.errors import ConfigError

_gelu = "erf"


def set_gelu(version: str) -> None:
    """Choose what "gelu" means in models built from now on: 'erf' (exact, the default) or 'tanh'.

    Raises ConfigError for any other name.
    """
    global _gelu
    if version not in ("erf", "tanh"):
        raise ConfigError(f"gelu version is {version!r}; expected 'erf' or 'tanh'")
    _gelu = version


def get_gelu() -> str:
    """Tell what "gelu" means now."""
    return _gelu
