"""Messages and help texts in Chinese where the locale asks for it.

Knows the locale's variables, the table zh.json, and what typer prints around help texts and errors.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand


def is_chinese() -> bool:
    """Tell whether messages should be Chinese, from the variables that GNU gettext reads, in its order."""
    locale = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "C")
    if re.split(r"[._@]", locale)[0] in ("C", "POSIX"):
        return False
    wanted = [language[:2] for language in (os.environ.get("LANGUAGE") or locale).split(":")]
    return next((language for language in wanted if language in ("en", "zh")), "en") == "zh"


def translate(text: str) -> str:
    """Translate a message into Chinese if the locale asks for it and the table has it, else return it unchanged.

    A key of the table may hold placeholders such as {path}, whose text is put into the translation; the text of
    {message} is translated too.
    """
    if not is_chinese():
        return text
    plain, patterns = _table()
    if text in plain:
        return plain[text]
    for pattern, chinese in patterns:
        if found := pattern.fullmatch(text):
            words = {name: translate(word) if name == "message" else word for name, word in found.groupdict().items()}
            return chinese.format_map(words)
    return text


@cache
def _table() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """Read the entries without placeholders, and those with, the most specific first: by their beginning, by length."""
    entries: dict[str, str] = json.loads(Path(__file__).with_name("zh.json").read_text("utf-8"))
    plain, patterns = {}, []
    for english, chinese in sorted(entries.items(), key=lambda entry: (entry[0][0] == "{", -len(entry[0]))):
        parts = re.split(r"\{(\w+)\}", english)
        if len(parts) == 1:
            plain[english] = chinese
        else:
            regex = "".join(f"(?P<{part}>.*?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
            patterns.append((re.compile(regex, re.DOTALL), chinese))
    return plain, patterns


@contextmanager
def errors_translated() -> Iterator[None]:
    """Translate errors in the usage of a command that leave the block."""
    usage_error: Any = typer.BadParameter.__base__  # which typer does not export by its own name
    try:
        yield
    except usage_error as error:
        if is_chinese():
            _translate_typer()
            message = error.format_message
            error.format_message = lambda: translate(message())
        raise


class Translated:
    """Shows help and wrong usage in the user's language; mixed into classes of typer's."""

    def get_usage(self, ctx: Any) -> str:
        """Return the line that begins with Usage."""
        return translate(super().get_usage(ctx))  # type: ignore[misc]

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the arguments."""
        with errors_translated():
            return super().make_context(*args, **options)  # type: ignore[misc]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help text."""
        command: Any = self
        if is_chinese():
            _translate_typer()
            for each in (command, *getattr(command, "commands", {}).values()):
                each.help = "\n\n".join(translate(" ".join(part.split())) for part in (each.help or "").split("\n\n"))
            for option in command.get_params(ctx):
                option.help = translate(option.help or "")
                if isinstance(option.show_default, str):
                    option.show_default = translate(option.show_default)
        super().format_help(ctx, formatter)  # type: ignore[misc]


class TranslatedCommand(Translated, TyperCommand):
    """A command whose help and errors are in the user's language."""


def _translate_typer() -> None:
    """Translate titles and the like that typer prints, and let its lines break inside Chinese text."""
    from rich.text import Text
    from typer import rich_utils

    class Folded(Text):  # rich breaks lines at spaces, and by default cuts off what has none and is too long
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **{"overflow": "fold"} | how)

        @classmethod
        def from_markup(cls, *args: Any, **how: Any) -> Text:
            return Text.from_markup(*args, **{"overflow": "fold"} | how)

    rich_utils.__dict__["Text"] = Folded
    for name, value in list(vars(rich_utils).items()):
        if name.isupper() and isinstance(value, str):
            setattr(rich_utils, name, translate(value))
