"""The examples that find nested entities, relations and events run as they are, on tiny data of a rule."""

import ast
import json

import pytest
from test_task_examples import run, work  # noqa: F401
from toy_relations import event_rows, nested_rows, relation_rows


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.mark.slow
def test_nested_entities_by_a_pointer(work):  # noqa: F811
    for seed, (part, count) in enumerate({"train": 240, "dev": 40, "test": 40}.items()):
        write(work / f"example.{part}", nested_rows(count, seed=seed))
    options = ("--data", ".", "--batch", "16", "--epochs", "8", "--lr", "3e-3", "--text", "宇宙日天月洪荒")
    printed = run("ner_global_pointer", *options).splitlines()
    assert ast.literal_eval(printed[0])["f1"] > 0.8
    assert printed[1:] == ["2:5 pair 日天月 3:4 middle 天"]


def duie(row):
    triples = [dict(zip(("subject", "predicate", "object"), each, strict=True)) for each in row["triples"]]
    return {"text": row["text"], "spo_list": triples}


@pytest.mark.parametrize(
    ("name", "least", "options"),
    [
        ("relation_extraction", 0.9, ("--epochs", "10", "--lr", "4e-3")),
        pytest.param("relation_extraction_gplinker", 0.5, ("--epochs", "8", "--lr", "5e-3"), marks=pytest.mark.slow),
    ],
)
def test_relations_of_triples(work, name, least, options):  # noqa: F811
    for seed, (part, count) in enumerate({"train": 300, "dev": 40}.items()):
        write(work / f"{part}_data.json", map(duie, relation_rows(count, seed=seed, strings=True)))
    options = ("--data", ".", "--average", "0", "--length", "32", "--batch", "16", *options, "--text", "玉天地金生云腾")
    printed = run(name, *options).splitlines()
    assert "relations: 150" in printed
    assert ast.literal_eval(printed[-2])["f1"] > least
    if least == 0.9:
        assert printed[-1] == "['金', 'parent', '云腾']"


def duee(row):
    def span(part, name):
        return {name: row["text"][part["start"] : part["stop"]], f"{name}_start_index": part["start"]}

    events = [
        {
            "event_type": event["label"],
            **span(event["trigger"], "trigger"),
            "arguments": [{"role": each["label"], **span(each, "argument")} for each in event["arguments"]],
        }
        for event in row["events"]
    ]
    return {"text": row["text"], "event_list": events}


@pytest.mark.slow
def test_events(work):  # noqa: F811
    for seed, (part, count) in enumerate({"train": 300, "dev": 40}.items()):
        write(work / f"duee_{part}.json", map(duee, event_rows(count, seed=seed)))
    options = (
        "--data",
        ".",
        "--length",
        "32",
        "--batch",
        "16",
        "--epochs",
        "10",
        "--lr",
        "4e-3",
        "--text",
        "玉天地金生云腾",
    )
    printed = run("event_extraction", *options).splitlines()
    assert "events: 150" in printed
    assert ast.literal_eval(printed[-2])["event_f1"] > 0.9
    assert printed[-1] == "birth 生 {'parent': '金', 'child': '云腾'}"
