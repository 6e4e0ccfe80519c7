"""What the README shows is what happens: its Python runs, its commands print what stands there, its paths exist."""

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hanmo.cli.app import app
from hanmo.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/architecture.md"]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A working folder that holds the clone's tests, so that what is written lands elsewhere."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)


def test_the_python_blocks_run_and_print_what_is_shown(clone):
    shown = [(code, BLOCKS[i + 1]) for i, (language, code) in enumerate(BLOCKS) if language == "python"]
    assert len(shown) == 1
    for code, (language, output) in shown:
        assert language == "text"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {})
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
    assert len(paths) > 5
    # A TensorFlow checkpoint is named by its prefix.
    missing = [path for path in paths if not (ROOT / path).exists() and not (ROOT / f"{path}.index").exists()]
    assert missing + [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_table_has_every_family():
    table = README[README.index("## Families") : README.index("## What is where")]
    assert set(re.findall(r"`([a-z0-9_.]+)`", table)) & set(FAMILIES) == set(FAMILIES)


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"make (\w+)", README)) & {"demo", "test", "check", "bench"}
    assert targets >= {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_demo_installs_hanmo_alone_and_shows_the_progress(tmp_path):
    def commands(target: str) -> str:
        return subprocess.run(
            ["make", "-n", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert "pip install" in commands("demo") and "[" not in commands("demo").split("pip install")[1]
    assert "-e '.[test,check]'" in commands("test")
    assert "--quiet" not in commands("demo") + commands("test")
