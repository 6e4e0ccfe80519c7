"""The commands and the settings that the guides of tasks show exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hanmo.cli.app import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(page for page in (*DOCS.glob("*.md"), *DOCS.glob("zh/*.md")) if "hanmo task " in page.read_text("utf-8"))
GUIDES = [DOCS / "tasks.md", DOCS / "zh" / "tasks.md"]
COMMANDS = typer.main.get_command(app).commands


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_command_of_a_block_is_parsed(page):
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    assert len(lines) > 8
    for program, name, *words in lines:
        assert program == "hanmo"
        command = COMMANDS[name]
        if name == "task":
            command, words = command.commands[words[0]], words[1:]
        assert command.make_parser(typer.Context(command)).parse_args(words)[1] == [], (name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_option_of_a_command_in_a_sentence_exists(page):
    text = page.read_text("utf-8")
    found = [*re.findall(r"`hanmo task (\w+) ([^`\n]+)`", text), *re.findall(r"^hanmo task (\w+) (.+)$", text, re.M)]
    for name, rest in found:
        known = {option for each in COMMANDS["task"].commands[name].params for option in each.opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, (name, rest)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_settings_of_a_block_are_options(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (settings,) = blocks(page, "toml")
    Path("task.toml").write_text(settings, "utf-8")
    result = CliRunner().invoke(app, ["task", "fit", "--config", "task.toml", "--out", "run"])
    assert "train.jsonl is missing" in result.stderr, result.stderr
    Path("task.toml").write_text("kindd = 1\n" + settings, "utf-8")
    assert "kindd" in CliRunner().invoke(app, ["task", "fit", "--config", "task.toml", "--out", "run"]).stderr
