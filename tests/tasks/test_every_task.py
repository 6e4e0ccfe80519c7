"""What every kind of task must do: learn a rule, save and load, predict alone as in a batch, repeat itself.

A new kind adds a line to CASES.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_pairs import alike_rows, question_rows, similar_rows
from toy_relations import event_rows, nested_rows, relation_rows
from toy_tasks import entity_rows, key_rows, model_folder, number_rows, pair_rows, sky_rows, word_rows

import hanmo
from hanmo.errors import ConfigError, TensorMismatch
from hanmo.tasks import TASKS, TaskArgs, TaskConfig
from hanmo.tasks.finetune import Fitted, fit
from hanmo.tasks.pipeline import TaskPipeline
from hanmo.tasks.rows import Row


@dataclass(frozen=True)
class Case:
    """rows: (count, seed) → rows of a rule.   least: main score that the rule is learned with."""

    config: TaskConfig
    rows: Callable[..., list[dict[str, Any]]]
    least: float
    epochs: float = 3
    lr: float = 4e-3
    count: int = 400


CASES = {
    "classify": Case(TaskConfig(kind="classify"), sky_rows, 0.95),
    "classify by the mean": Case(TaskConfig(kind="classify", pooling="mean"), sky_rows, 0.95),
    "classify pairs": Case(TaskConfig(kind="classify", pooling="first"), pair_rows, 0.9, epochs=4),
    "classify, several labels": Case(TaskConfig(kind="classify", pooling="mean"), key_rows, 0.9, epochs=4),
    "tag": Case(TaskConfig(kind="tag"), entity_rows, 0.9, count=200),
    "tag by a MEMM": Case(TaskConfig(kind="tag", head="memm", form="BMES"), entity_rows, 0.9, epochs=5, count=200),
    "tag words": Case(TaskConfig(kind="tag", head="softmax", form="words"), word_rows, 0.9, count=200),
    "embed": Case(TaskConfig(kind="embed", pooling="mean"), similar_rows, 0.8),
    "embed by pairs": Case(TaskConfig(kind="embed", pooling="mean"), alike_rows, 0.8),
    "read": Case(TaskConfig(kind="read"), question_rows, 0.8, epochs=8),
    "read by masks": Case(TaskConfig(kind="read_mlm", options={"max_answer": 3}), question_rows, 0.8, 12, 2e-3),
    "read by UniLM": Case(TaskConfig(kind="read_seq2seq", options={"max_answer": 3}), question_rows, 0.8, epochs=9),
    "few": Case(TaskConfig(kind="few", options={"words": {"sky": "天", "earth": "地"}}), sky_rows, 0.9, epochs=4),
    "regression": Case(TaskConfig(kind="classify", pooling="mean"), number_rows, 0.9),
    "spans": Case(TaskConfig(kind="spans", options={"head_size": 8}), nested_rows, 0.9, epochs=6, lr=5e-3, count=300),
    "spans by dense loss": Case(
        TaskConfig(kind="spans", head="global_pointer", options={"head_size": 8, "loss": "dense"}),
        nested_rows,
        0.9,
        epochs=6,
        lr=5e-3,
        count=300,
    ),
    "relations": Case(TaskConfig(kind="relate", options={"head_size": 32}), relation_rows, 0.9, epochs=14, lr=5e-3),
    "relations by CasRel": Case(
        TaskConfig(kind="relate", head="casrel"), partial(relation_rows, strings=True), 0.9, epochs=5, lr=5e-3
    ),
    "events": Case(TaskConfig(kind="events", options={"head_size": 16}), event_rows, 0.9, epochs=7, lr=6e-3, count=300),
}
# Left to the slow tests; another case has the same kind.
SAVED = ("model.safetensors", "hanmo.json", "task.json")
SLOW = ("classify by the mean", "spans by dense loss", "relations")


@dataclass(frozen=True)
class Trained:
    case: Case
    base: Path
    fitted: Fitted
    out: Path
    loaded: TaskPipeline
    dev: list[dict[str, Any]]


def train(case: Case, base: Path, out: Path, **options: Any) -> Fitted:
    args = TaskArgs(epochs=options.pop("epochs", case.epochs), lr=case.lr)
    rows = case.rows(options.pop("count", case.count), seed=0)
    return fit(base, train=rows, dev=case.rows(60, seed=1), config=case.config, out=out, args=args, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES],
)
def trained(request, tmp_path_factory, base) -> Trained:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("task")
    fitted = train(case, base, folder / "run")
    loaded = hanmo.load(folder / "run")
    assert isinstance(loaded, TaskPipeline)
    return Trained(case, base, fitted, folder / "run", loaded, case.rows(60, seed=1))


def inputs(rows: list[dict[str, Any]]) -> list[Any]:
    """Take from rows what is predicted from."""
    return [{key: row[key] for key in ("text", "question", "a", "b") if key in row} for row in rows]


def test_every_kind_has_a_case():
    assert {case.config.kind for case in CASES.values()} == set(TASKS)


def test_the_rule_is_learned_and_the_folder_has_the_score(trained):
    score = trained.loaded.task.config.score
    assert score is not None and score == trained.fitted.score
    assert score.value >= trained.case.least
    assert trained.loaded.evaluate(trained.dev)[score.name] == pytest.approx(score.value, abs=1e-9)


def test_a_saved_folder_predicts_the_same(trained, tmp_path):
    texts = inputs(trained.dev[:8])
    again = hanmo.load(trained.loaded.save(tmp_path / "copy"))
    assert again.predict(texts) == trained.loaded.predict(texts)
    assert again.labels == trained.loaded.labels


def test_rows_alone_equal_rows_in_a_batch(trained):
    texts = inputs(trained.dev[:12])
    together = trained.loaded.predict(texts, batch=12)
    for text, result in zip(texts, together, strict=True):
        assert_close(trained.loaded.predict(text), result)


def assert_close(one: Any, other: Any) -> None:
    """Compare results: numbers up to the rounding of another batch, all else exactly."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_close(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        assert one == other


def test_results_are_json(trained):
    results = trained.loaded.predict(inputs(trained.dev[:4]))
    assert json.loads(json.dumps(results, ensure_ascii=False)) == results


def test_a_text_of_many_windows_is_read_to_its_end(trained):
    pipeline, rows = trained.loaded, trained.dev[:30]
    long = {key: "".join(row[key] for row in inputs(rows)) for key in inputs(rows)[0]}
    example = pipeline.task.encode(Row("long", long))
    assert len(example.windows) > 3
    for place, tokens in enumerate(example.tokens):
        covered = {n for window in example.windows for n in range(window.parts[place].start, window.parts[place].stop)}
        assert covered == set(range(len(tokens)))
    assert_close(pipeline.predict(long), pipeline.predict([long, *inputs(rows)])[0])


def test_untrained_weights_have_scores_that_are_numbers(trained, tmp_path):
    record = json.loads((trained.out / "log.jsonl").read_text("utf-8").splitlines()[0])
    scores = {name: value for name, value in record["evaluation"].items() if isinstance(value, float | int)}
    assert trained.fitted.score.name in scores
    assert all(math.isfinite(value) for value in scores.values())


def test_the_same_seed_gives_the_same_weights(trained, tmp_path):
    case = replace(trained.case, epochs=1, count=48, config=replace(trained.case.config, dropout=0.1))
    one, two = (train(case, trained.base, tmp_path / name).folder for name in ("one", "two"))
    assert [(one / name).read_bytes() for name in SAVED] == [(two / name).read_bytes() for name in SAVED]


def test_adapters_are_merged_into_the_folder(trained, tmp_path):
    args = TaskArgs(epochs=1, lr=2e-3, lora=4)
    rows = trained.case.rows(48, seed=0)
    fit(trained.base, train=rows, dev=trained.dev, config=trained.case.config, out=tmp_path / "lora", args=args)
    loaded = hanmo.load(tmp_path / "lora")
    assert not [name for name, _ in loaded.network.named_parameters() if name.endswith(("down", "up"))]
    score = loaded.task.config.score
    assert loaded.evaluate(trained.dev)[score.name] == pytest.approx(score.value, abs=0.05)


def test_a_folder_without_the_head_is_refused(trained, tmp_path):
    hanmo.save(trained.loaded.model, tmp_path / "bare", tokenizer=[trained.out / "best" / "vocab.txt"])
    (tmp_path / "bare" / "task.json").write_bytes((trained.out / "best" / "task.json").read_bytes())
    if not trained.loaded.network.head.state_dict():  # this kind needs no weights beside the network's
        texts = inputs(trained.dev[:4])
        assert hanmo.load(tmp_path / "bare").predict(texts) == trained.loaded.predict(texts)
        return
    with pytest.raises(TensorMismatch, match=r"head\..* is missing.* give the folder of a task"):
        hanmo.load(tmp_path / "bare")


def test_an_unknown_head_names_those_there_are(trained):
    config = replace(trained.loaded.task.config, head="hydra")
    with pytest.raises(ConfigError, match=r"head is 'hydra'; expected one of "):
        type(trained.loaded.task)(config, trained.loaded.tokenizer)
