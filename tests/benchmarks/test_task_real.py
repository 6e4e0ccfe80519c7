"""The measurement on real data: how rows are read and split, and that a tiny run prints its table."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def real():
    spec = importlib.util.spec_from_file_location("task_real", ROOT / "benchmarks" / "task_real.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["task_real"] = module
    spec.loader.exec_module(module)
    return module


def test_surname_and_given_name_are_one_person(real):
    row = real.entity_row("李/nr 鹏/nr 江/nr 泽民/nr 在/p 北京/ns 会见/v 克林顿/nr 叶利钦/nr １/２/m")
    found = [(row["text"][span["start"] : span["stop"]], span["label"]) for span in row["spans"]]
    assert row["text"] == "李鹏江泽民在北京会见克林顿叶利钦１/２"
    assert found == [("李鹏", "PER"), ("江泽民", "PER"), ("北京", "LOC"), ("克林顿", "PER"), ("叶利钦", "PER")]


def test_blocks_are_split_four_to_one_by_position(real):
    part = real.by_position([{"text": str(number)} for number in range(4000)], None)
    assert (len(part.train), len(part.dev), len(part.test)) == (3000, 200, 800)
    assert [row["text"] for row in part.test[:2]] == ["400", "401"]


def test_no_text_is_on_two_sides(real):
    part = real.sentiment(None)
    sides = [{row["text"] for row in rows} for rows in (part.train, part.dev, part.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len(part.train) + len(part.dev) + len(part.test)
    assert len(set.union(*sides)) == 9078 + 8379 - 2 * 47


def test_features_are_of_the_characters_around(real):
    first, *_, last = list(real.features("北京1a"))
    assert {"0:北", "1:京", "0:北京"} <= set(first)
    assert {"0:a", "-1:1a", "k:hdapp"} <= set(last)


def test_baselines_do_not_learn_the_rows_they_are_measured_on(real):
    rows = [[{"text": name}] for name in ("train", "dev", "test")]
    assert real.Part(*rows).known == rows[0] + rows[1]
    assert real.Part(rows[0], rows[1], rows[1]).known == rows[0]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "lines"), [("entities", 8), ("sentiment", 7)])
def test_a_tiny_run_prints_its_table(part, lines):
    words = ("--part", part, "--tiny", "--limit", "400", "--seeds", "2")
    command = [sys.executable, "benchmarks/task_real.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\ndata ")[2].splitlines()[1:]
    assert len(table) == lines
    assert all(line.startswith(part) for line in table)
