"""The command line speaks Chinese where the locale says so: help, wrong usage, messages; the table is complete."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import hanmo
from hanmo.cli.app import app
from hanmo.cli.chinese import is_chinese, translate
from hanmo.cli.screen import say, translating_console

ROOT = Path(hanmo.__file__).parent
TABLE: dict[str, str] = json.loads((ROOT / "cli" / "zh.json").read_text("utf-8"))
# What typer prints comes before the help text of `hanmo` itself.
OWN = list(TABLE)[list(TABLE).index("Chinese Transformer language models, from the original checkpoints.") :]
SPEAKING = {"say": 0, "progress": 0, "counted": 0, "bar": 0, "_end": 0, "BadParameter": 0, "show": 0}  # which argument
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.delenv("LC_MESSAGES")
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")


def blank(text: str) -> str:
    """Leave of a message with placeholders what every one of its kind has."""
    return re.sub(r"\{\w+\}", "{}", text)


def help_texts(*names: str) -> Iterator[str]:
    """Yield the texts on the page of `hanmo` and on those of some of its commands, all of them if none is named."""
    group = typer.main.get_command(app)
    tasks = group.commands["task"]
    below = () if names else tasks.commands.values()
    for command in (group, *(group.commands[name] for name in names or group.commands), *below):
        for part in command.help.split("\n\n"):
            text = " ".join(part.split())
            if not text.startswith(("hanmo ", "[bold]hanmo ")):  # examples
                yield text
        for option in command.params:
            yield from (text for text in (option.help, option.show_default) if isinstance(text, str) and text)


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the texts of a literal, its placeholders empty; of a choice, those of both branches."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield " ".join(node.value.split())
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))


def spoken() -> Iterator[tuple[str, str]]:
    """Yield (file, text) of everything that the commands, and training, say."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                place = SPEAKING.get(getattr(node.func, "id", getattr(node.func, "attr", "")), 9)
                if len(node.args) > place:
                    yield from ((path.name, text) for text in texts(node.args[place]) if text)


def test_every_help_text_is_translated():
    found = set(help_texts())
    assert len(found) > 100
    assert sorted(found - set(TABLE)) == []


def test_everything_that_is_said_is_translated():
    found, known = set(spoken()), {blank(key) for key in TABLE}
    assert len(found) > 40
    # One sentence is made of several words that the table has one by one.
    pieces = {
        ("loop.py", "step {}: {} {}{}"),
        ("loop.py", "step {}: the gradient's norm is {}; {} is left out"),
        ("finetune.py", "{}, held out: {} before, {} after (step {} of {})"),
    }
    assert sorted((file, text) for file, text in found - pieces if blank(text) not in known) == []


def test_no_entry_of_the_table_is_stale():
    found = {blank(text) for text in help_texts()}
    for path in ROOT.rglob("*.py"):
        found |= {text for node in ast.walk(ast.parse(path.read_text("utf-8"))) for text in texts(node)}
    # Their words come from variables.
    composed = re.compile(
        r"step \{step\}: (\{value\}|the gradient)|.*, held out: |held out: .* tokens$"
        r"|no checkpoint at |the vocabulary has "
    )
    assert [key for key in OWN if blank(key) not in found and not composed.match(key)] == []


def test_a_translation_is_chinese_and_has_no_other_placeholders_than_its_message():
    for english, chinese in TABLE.items():
        names = re.findall(r"\{\w*\}", english)
        assert len(names) == len(set(names)), english
        assert set(re.findall(r"\{\w*\}", chinese)) <= set(names), english
        assert HAN.search(chinese) or english in ("8", "3", "cpu, cuda, cuda:1 …", "Value error, {message}")


def squeezed(text: str) -> str:
    """Take away spaces and the frames of panels, and the markup that is printed bold."""
    return re.sub(r"[\s│]|\[/?bold\]", "", text)


def test_help_is_in_chinese_or_english():
    program = """
import sys
from typer.testing import CliRunner
from hanmo.cli.app import app
print("\\n".join(CliRunner().invoke(app, [*page.split(), "--help"]).stdout for page in sys.argv[1:]))
"""

    def pages(*names: str, **locale: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
        result = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", program, *names],
            env=environment | locale,
            capture_output=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.decode("utf-8")

    chinese = pages("", "write", "pack", LANG="zh_CN.UTF-8", COLUMNS="400")
    english = pages("", "write", "pack", LANG="zh_CN.UTF-8", LC_ALL="C", COLUMNS="400")
    assert len(re.findall("用法：hanmo", chinese)) == len(re.findall("Usage: hanmo", english)) == 3
    for title in ("参数", "选项", "命令", "[默认：", "[必填]", "显示本帮助并退出。"):
        assert title in chinese
    for title in ("Arguments", "Options", "Commands", "[default: ", "[required]", "Show this message and exit."):
        assert title in english and title not in chinese
    for text in help_texts("write", "pack"):
        assert squeezed(TABLE[text]) in squeezed(chinese)
    # A long text without spaces is folded where the screen is narrow, not cut off.
    assert squeezed(TABLE["The config.json, if not beside the checkpoint."]) in squeezed(
        pages("write", LANG="zh_CN.UTF-8", COLUMNS="80")
    )


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_TW"}, True),
        ({"LANG": "en_US.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, False),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, False),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, True),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}, True),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en"}, False),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "de:zh:en"}, True),
        ({"LANG": "C", "LANGUAGE": "zh"}, False),
        ({"LANGUAGE": "zh"}, False),
    ],
)
def test_the_locale_is_read_as_gettext_does(monkeypatch, variables, wanted):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_chinese() is wanted
    assert (translate("interrupted") == "已中断") is wanted


@pytest.mark.parametrize(
    ("english", "shown"),
    [
        ("finished: 3 rows are in out.jsonl", "完成：out.jsonl 里有 3 行"),
        (
            "finished: 1,203 rows are in a b.jsonl, 3 failed and are in a b.errors.jsonl",
            "完成：a b.jsonl 里有 1,203 行，3 行无法续写，记在 a b.errors.jsonl 里",
        ),
        ("deleted 1 file of 8 bytes from {place}", "已从 {place} 删除 1 个文件，共 8 字节"),
        ("deleted 12 files of 1,024 bytes from C:\\x", "已从 C:\\x 删除 12 个文件，共 1,024 字节"),
        ("Invalid value: --documents belongs to --quality", "用法有误：--documents 要与 --quality 一起用"),
        ("no words of the table", "no words of the table"),
    ],
)
def test_what_stands_in_a_message_is_put_into_its_translation(chinese, english, shown):
    assert translate(english) == shown


def test_messages_and_errors_are_in_chinese(chinese, tmp_path, capsys):
    say("interrupted")
    translating_console().print("curves: out/curves.png")
    assert capsys.readouterr().err == "hanmo: 已中断\n曲线：out/curves.png\n"
    (tmp_path / "vocab.txt").write_text("x", "utf-8")
    result = CliRunner().invoke(app, ["vocab", "corpus", "--out", str(tmp_path / "vocab.txt")])
    assert result.stderr == f"hanmo: {tmp_path}/vocab.txt 已存在；请换一个 --out，或用 --force 覆盖\n"
    result = CliRunner().invoke(app, ["convert", "no-such-folder", "x", "--to", "safetensors"])
    assert result.stderr.startswith("hanmo: 找不到权重 no-such-folder：")


def test_arguments_in_chinese_errors_are_spelled_as_options(chinese, monkeypatch):
    def fail(*args, **options):
        raise hanmo.errors.PromptError(
            "the prompt has 9 tokens, the model knows 8 positions; shorten it, or keep only its end with keep_last=True"
        )

    monkeypatch.setattr("hanmo.pipeline.open_writer", fail)
    result = CliRunner().invoke(app, ["write", "x"])
    assert result.stderr == "hanmo: 开头有 9 个 token，模型只有 8 个位置；请缩短，或用 --keep-last 只留末尾\n"


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["inspect"], "缺少参数"),
        (["inspet", "x"], "没有命令"),
        (["inspect", "x", "--nope"], "没有选项"),
        (["bench", "--documents", "3"], "--documents 要与 --quality 一起用"),
        (["plan"], "缺少选项"),
    ],
)
def test_wrong_usage_is_explained_in_chinese(args, shown):
    environment = {**os.environ, "LC_ALL": "zh_CN.UTF-8", "COLUMNS": "200"}
    command = [sys.executable, "-X", "utf8", "-m", "hanmo.cli", *args]
    result = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    told = result.stderr.decode("utf-8")
    assert result.returncode == 2 and result.stdout == b""
    assert shown in told and "用法：hanmo" in told and "错误" in told and "查看帮助。" in told


def test_the_table_is_read_only_where_it_is_wanted():
    program = """
import sys
from hanmo.cli.app import app
from hanmo.cli.chinese import _table, translate
assert translate("interrupted") == "interrupted"
assert _table.cache_info().misses == 0 and "rich.console" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
