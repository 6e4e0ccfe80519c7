"""Prediction and encoding by OpenVINO against torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rounding import assert_near
from test_every_task import assert_close
from toy_tasks import texts
from untrained import untrained

import hanmo
from hanmo.errors import ConfigError
from hanmo.tasks import TaskConfig
from hanmo.tasks.rows import as_rows

CLASSIFY = TaskConfig(kind="classify", form="single", labels=("earth", "sky"), head="linear", max_length=40)
TAG = TaskConfig(kind="tag", form="BIO", labels=("LOC", "PER"), head="crf", max_length=40)
FAMILIES = ("bert", "albert", "nezha", "roformer", "electra")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def unequal() -> list[str]:
    found = texts(12, longest=12)
    return [*found, "".join(found), found[0] * 30]


@pytest.mark.parametrize("config", [CLASSIFY, TAG], ids=["classify", "tag"])
@pytest.mark.parametrize(
    ("family", "attention"), [*((family, "") for family in FAMILIES), ("gpt2_ml", "full"), ("gpt2_ml", "causal")]
)
def test_float32_predictions_equal_those_of_torch(tmp_path, family, attention, config):
    pipeline = untrained(tmp_path, replace(config, attention=attention), family=family)
    by_torch = pipeline.predict(unequal())
    assert pipeline.use_openvino(threads=1) is pipeline
    assert_close(pipeline.predict(unequal(), batch=5), by_torch)


OTHERS = {
    "spans": TaskConfig(kind="spans", labels=("LOC",), head="global_pointer", max_length=40),
    "relations": TaskConfig(kind="relate", labels=("in",), head="gplinker", max_length=40),
    "relations by CasRel": TaskConfig(kind="relate", labels=("in",), head="casrel", max_length=40),
    "events": TaskConfig(kind="events", labels=("buy", "buy|who"), head="gplinker", max_length=40),
    "few": TaskConfig(
        kind="few", form="single", labels=("earth", "sky"), head="linear", max_length=40,
        options={"words": {"sky": "天", "earth": "地"}},
    ),
    "embed": TaskConfig(kind="embed", form="cosent", head="linear", pooling="mean", max_length=40),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_the_outputs_of_other_kinds_equal_those_of_torch(tmp_path, name):
    pipeline = untrained(tmp_path, OTHERS[name])
    examples = [pipeline.task.encode(row) for row in as_rows(unequal())]
    arrays = pipeline.task.collate([(each, each.windows[0]) for each in examples], targets=False)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    vectors = pipeline.encode(unequal()) if name == "embed" else None
    with torch.inference_mode():
        by_torch = pipeline.network(batch)
        found = pipeline.use_openvino(threads=1).network(batch)
    torch.testing.assert_close(found, by_torch, rtol=1e-4, atol=1e-3)
    if vectors is not None:
        np.testing.assert_allclose(pipeline.encode(unequal()), vectors, rtol=0, atol=1e-4)


def test_pairs_keep_their_segments(tmp_path):
    pipeline = untrained(tmp_path, CLASSIFY)
    pairs = list(zip(unequal(), reversed(unequal()), strict=True))
    by_torch = pipeline.predict(pairs)
    assert abs(pipeline.predict(pairs[0][0] + pairs[0][1])["probability"] - by_torch[0]["probability"]) > 1e-4
    assert_close(pipeline.use_openvino(threads=1).predict(pairs), by_torch)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_vectors_of_small_weights_are_near_those_of_torch(tmp_path, weights):
    pipeline = untrained(tmp_path, CLASSIFY)
    exact = pipeline.encode(unequal(), pool="first")
    near = pipeline.use_openvino(weights=weights, threads=1).encode(unequal(), pool="first", batch=4)
    assert abs(exact - near).max() > 1e-6
    assert_near(near, exact, pipeline.config, weights, to_float32=True)


@pytest.mark.parametrize("pool", ["mean", "first", "pooler"])
def test_encode_equals_torch_whatever_the_order_of_texts(tmp_path, pool):
    pipeline = untrained(tmp_path, CLASSIFY)
    exact = pipeline.encode(unequal(), pool=pool, batch=3)
    alone = np.concatenate([pipeline.encode(text, pool=pool) for text in unequal()])
    np.testing.assert_allclose(exact, alone, rtol=0, atol=1e-4)
    found = pipeline.use_openvino(threads=1).encode(unequal(), pool=pool, batch=3)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4)


def test_a_plain_checkpoint_encodes_and_fills_by_openvino(tmp_path):
    pipeline = untrained(tmp_path, CLASSIFY)
    base = hanmo.load(tmp_path / "base")
    by_torch = base.encode(unequal()), base.fill("天地[MASK]黄")
    base.use_openvino(threads=1)
    np.testing.assert_allclose(base.encode(unequal()), by_torch[0], rtol=0, atol=1e-4)
    filled = base.fill("天地[MASK]黄")
    assert [each.token for each in filled[0]] == [each.token for each in by_torch[1][0]]
    assert base.encode([]).shape == (0, pipeline.config.main.hidden_size)


def test_unknown_weights_and_other_models_are_refused(tmp_path):
    pipeline = untrained(tmp_path, CLASSIFY)
    with pytest.raises(ConfigError, match=r"weights is 'int7'; expected one of float32, bfloat16, int8, int4"):
        pipeline.use_openvino(weights="int7")
    changed = hanmo.load(tmp_path / "base", config=replace(pipeline.config, pool="none"))
    with pytest.raises(ConfigError, match=r"not built as .*model.safetensors says; save it, and open it from there"):
        changed.use_openvino()
