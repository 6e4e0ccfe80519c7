"""What the README shows is what happens: its Python runs, its commands print what it shows, its paths exist."""

import contextlib
import io
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hanmo.cli.app import app
from hanmo.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
README, CHINESE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]


def blocks(text: str) -> list[tuple[str, str]]:
    """Give (language, content) of each block of code."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


BLOCKS = blocks(README)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A working folder that holds the clone's tests, so that what is written lands elsewhere."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "docs/zh/writing.md"])
def test_the_python_blocks_run_and_print_what_is_shown(clone, page):
    found = blocks((ROOT / page).read_text("utf-8"))
    shown = [(code, found[i + 1]) for i, (language, code) in enumerate(found) if language == "python"]
    assert len(shown) == 1
    for code, (language, output) in shown:
        assert language == "text"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), {})
        assert printed.getvalue() == output


def test_the_commands_print_what_is_shown(clone):
    commands = 0
    for language, session in BLOCKS:
        if language != "console":
            continue
        for command in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            program, *args = shlex.split(line)
            result = CliRunner().invoke(app, args)
            assert (program, result.exit_code, result.stdout) == ("hanmo", 0, output), result.stderr
            commands += 1
    assert commands == 3


def test_the_published_models_are_named_as_shown(indexes):
    (shown,) = [block for _, block in BLOCKS if block.startswith("$ hanmo inspect checkpoints-index\n")]
    assert CliRunner().invoke(app, ["inspect", str(indexes)]).stdout == shown.partition("\n")[2]


def test_every_block_is_run_or_needs_no_running():
    languages = [language for language, _ in BLOCKS]
    # make and pip, which are how these tests are reached; and what needs a released checkpoint
    assert (languages.count("sh"), languages.count("py")) == (5, 1)
    assert set(languages) == {"sh", "py", "python", "text", "console"}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_link_exists(page):
    text = (ROOT / page).read_text("utf-8")
    paths = re.findall(r"\b(?:hanmo|tests|examples|benchmarks|docs)/[\w./-]*\w", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert len(paths) > 5 or len(links) > 2 or page in (*DOCS, "CHANGELOG.md")
    # A TensorFlow checkpoint is named by its prefix.
    missing = [path for path in paths if not (ROOT / path).exists() and not (ROOT / f"{path}.index").exists()]
    missing = [path for path in missing if (page, path) != ("CONTRIBUTING.md", "hanmo/families/plum.py")]  # an example
    assert missing + [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_table_has_every_family():
    table = README[README.index("## Families") : README.index("## What is where")]
    assert set(re.findall(r"`([a-z0-9_.]+)`", table)) & set(FAMILIES) == set(FAMILIES)


def commands(text: str) -> list[list[str]]:
    """Give the words of each command that a page shows, comments and outputs left out."""
    lines = [line for language, block in blocks(text) if language == "sh" for line in block.splitlines()]
    lines += re.findall(r"^(?: {4})?\$ (.*)$", text, re.MULTILINE) + re.findall(r"^ {4}(hanmo .*)$", text, re.MULTILINE)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_are_ones_that_hanmo_has(page):
    group = typer.main.get_command(app)
    text = (ROOT / page).read_text("utf-8")
    for words in commands(text):
        start = next((i for i, word in enumerate(words) if word in ("hanmo", "hanmo.cli")), None)
        if start is None:
            assert words[0] in ("make", "pip", "ray")
            continue
        name, *args = words[start + 1 :]
        command = group.commands[name]
        with group.make_context("hanmo", [name]) as parent:
            command.make_context(name, args, parent=parent)  # exits where an option is unknown or a value is wrong


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_are_ones_that_hanmo_has(page):
    options = {opt for each in typer.main.get_command(app).commands.values() for p in each.params for opt in p.opts}
    text = (ROOT / page).read_text("utf-8")
    for name, said in re.findall(r"`hanmo (\w+)([^`]*)`", text):
        assert name in typer.main.get_command(app).commands
        assert set(re.findall(r"--[\w-]+", said)) <= options


def test_commands_are_found():
    counts = {page: len(commands((ROOT / page).read_text("utf-8"))) for page in PAGES}
    assert counts["README.md"] > 10 and min(counts[page] for page in DOCS if "/zh/" in page) >= 3


def test_both_readmes_say_the_same():
    pages = (README, CHINESE)
    headings, shown = (
        [re.findall(pattern, page, re.MULTILINE) for page in pages] for pattern in (r"^#+ ", r"^hanmo/\S+")
    )
    assert headings[0] == headings[1] and len(headings[0]) > 8
    assert shown[0] == shown[1] and len(shown[0]) > 10
    codes = [[(language, re.sub(r" *#.*", "", code)) for language, code in blocks(page)] for page in pages]
    assert codes[0][:-1] == codes[1][:-1]  # the last block says in words what is where
    names = [set(re.findall(r"`([^`\n\u4e00-\u9fff]+)`", re.sub(r"(?ms)^```.*?^```$", "", page))) for page in pages]
    assert names[0] == names[1] and len(names[0]) > 50


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    targets = set(re.findall(r"make ([a-z-]+)", README)) & {"demo", "test", "check", "bench"}
    targets |= set(re.findall(r"^make ([a-z-]+)", contributing, re.MULTILINE))
    assert targets >= {"demo", "test", "test-all", "check"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_demo_installs_hanmo_alone_and_shows_the_progress(tmp_path):
    def commands(target: str) -> str:
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
        command = ["make", "--no-print-directory", "-n", target, f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout

    assert "pip install" in commands("demo") and "[" not in commands("demo").split("pip install")[1]
    assert "-e '.[test,check]'" in commands("test")
    assert "--quiet" not in commands("demo") + commands("test")
