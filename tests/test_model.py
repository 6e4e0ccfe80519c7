"""One battery for every family: fast paths equal the plain one, gradients reach every parameter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hanmo.config import ModelConfig
from hanmo.families import FAMILIES
from hanmo.model import Model

GOLDENS = Path(__file__).parent / "data" / "goldens"
KINDS = {
    "bert": "bert",
    "roberta": "bert",
    "albert": "albert",
    "albert_unshared": "albert",
    "nezha": "nezha",
    "roformer": "roformer",
    "roformer_v2": "roformer_v2",
    "gpt": "gpt",
    "gpt2": "gpt2",
    "gpt2_ml": "gpt2_ml",
    "t5.1.0": "t5_1.0",
    "t5.1.1": "t5_1.1",
    "mt5.1.1": "mt5_1.1",
}


def config_of(family: str, **changes) -> ModelConfig:
    data = json.loads((GOLDENS / KINDS[family] / "config.json").read_text("utf-8"))
    names = FAMILIES[family].tensorflow or FAMILIES[family].huggingface
    config = names.config(data)
    side = "decoder" if config.decoder else "encoder"
    return replace(config, **{side: replace(config.main, dropout=0.0, attention_dropout=0.0, **changes)})


def model_of(config: ModelConfig) -> Model:
    model = Model(config).initialize(1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def ids_of(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(1, 120, shape, generator=torch.Generator().manual_seed(seed))


CAUSAL = [(family, {}) for family in ("gpt", "gpt2", "gpt2_ml")]
KIN = ("bert", "roberta", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2")
CAUSAL += [(family, {"mask": "causal"}) for family in KIN]
CAUSAL += [("bert", {"mask": "causal", "score_residual": kind}) for kind in ("previous", "cumulative")]
CAUSAL += [("bert", {"mask": "causal", "position": "sinusoidal", "positions": None})]
CAUSAL += [("bert", {"mask": "causal", "hierarchical": 0.4})]
PREFIX = [(family, {"mask": "prefix"}) for family in KIN]
T5 = ["t5.1.0", "t5.1.1", "mt5.1.1"]


@pytest.mark.parametrize(("family", "changes"), CAUSAL)
@pytest.mark.parametrize("steps", [[5, 1, 1, 3, 1], [1] * 11])
def test_cached_logits_equal_uncached(family, changes, steps):
    model, ids = model_of(config_of(family, **changes)), ids_of(3, 11)
    with torch.no_grad():
        whole = model(ids).logits
        cache = model.new_cache(rows=3, capacity=11)
        parts = [model(part, cache=cache).logits for part in ids.split(steps, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("family", "changes"), PREFIX)
def test_cached_prefix_logits_equal_uncached(family, changes):
    model, ids = model_of(config_of(family, **changes)), ids_of(2, 9)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]]).expand(2, -1)
    with torch.no_grad():
        whole = model(ids, segments=segments).logits
        cache = model.new_cache(rows=2, capacity=9)
        pairs = zip(ids.split([4, 1, 2, 1, 1], 1), segments.split([4, 1, 2, 1, 1], 1), strict=True)
        parts = [model(part, segments=segment, cache=cache).logits for part, segment in pairs]
        changed = ids.clone()
        changed[:, 3] += 1
        assert not torch.allclose(model(changed, segments=segments).logits[:, 0], whole[:, 0])
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", T5)
@pytest.mark.parametrize("cross_positions", [False, True])
def test_cached_decoder_equals_uncached(family, cross_positions):
    model = model_of(config_of(family, cross_positions=cross_positions))
    source, ids = ids_of(2, 7), ids_of(2, 6, seed=4)
    source_mask = torch.ones(2, 7, dtype=torch.bool)
    source_mask[1, 4:] = False
    with torch.no_grad():
        whole = model(ids, source=source, source_mask=source_mask).logits
        cache = model.new_cache(rows=2, capacity=6)
        parts = [model(ids[:, :2], source=source, source_mask=source_mask, cache=cache).logits]
        parts += [model(part, cache=cache).logits for part in ids[:, 2:].split(1, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("family", "changes"), CAUSAL)
@pytest.mark.parametrize("left", [False, True])
def test_padded_rows_equal_unpadded(family, changes, left):
    model = model_of(config_of(family, **changes))
    lengths = [9, 4, 6]
    texts = [ids_of(1, n, seed=n) for n in lengths]
    ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
    for i, text in enumerate(texts):
        place = slice(9 - lengths[i], 9) if left else slice(0, lengths[i])
        ids[i, place], mask[i, place] = text, True
    with torch.no_grad():
        padded = model(ids, mask=mask).logits
        for i, text in enumerate(texts):
            torch.testing.assert_close(padded[i][mask[i]], model(text).logits[0], rtol=0, atol=3e-5)


@pytest.mark.parametrize(("family", "changes"), CAUSAL)
def test_rows_padded_on_the_left_go_on_with_the_cache(family, changes):
    model = model_of(config_of(family, **changes))
    texts = [ids_of(1, n, seed=n) for n in (6, 3)]
    tail = ids_of(2, 4, seed=9)
    ids = torch.cat([torch.nn.functional.pad(text, (6 - text.shape[1], 0)) for text in texts])
    cache = model.new_cache(rows=2, capacity=10)
    with torch.no_grad():
        model(ids, mask=ids != 0, cache=cache)
        steps = torch.cat([model(part, cache=cache).logits for part in tail.split(1, 1)], 1)
        for i, text in enumerate(texts):
            whole = model(torch.cat((text, tail[i : i + 1]), 1)).logits[:, -4:]
            torch.testing.assert_close(steps[i : i + 1], whole, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", KIN)
def test_padded_encoder_rows_equal_unpadded(family):
    model = model_of(config_of(family))
    ids = ids_of(2, 8)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    with torch.no_grad():
        padded = model(ids, mask=mask).hidden
        torch.testing.assert_close(padded[:1], model(ids[:1]).hidden, rtol=0, atol=3e-5)
        torch.testing.assert_close(padded[1:, :5], model(ids[1:, :5]).hidden, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("family", "changes"), CAUSAL)
def test_a_batch_equals_its_rows_one_by_one(family, changes):
    model, ids = model_of(config_of(family, **changes)), ids_of(4, 7)
    with torch.no_grad():
        batch = model(ids).logits
        single = torch.cat([model(row[None]).logits for row in ids])
    torch.testing.assert_close(batch, single, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("family", "changes"), CAUSAL)
def test_reordered_cache_goes_on_like_the_reordered_text(family, changes):
    model, ids = model_of(config_of(family, **changes)), ids_of(3, 6)
    order, tail = torch.tensor([2, 0, 2, 1]), ids_of(4, 2, seed=8)
    cache = model.new_cache(rows=3, capacity=8)
    with torch.no_grad():
        model(ids, cache=cache)
        cache.reorder(order)
        steps = model(tail, cache=cache).logits
        whole = model(torch.cat((ids[order], tail), 1)).logits[:, -2:]
    torch.testing.assert_close(steps, whole, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", sorted(KINDS))
def test_gradients_reach_every_parameter_and_recomputation_changes_none(family):
    def gradients(recompute: bool) -> dict[str, torch.Tensor]:
        model = model_of(config_of(family))
        for stack in (model.encoder, model.decoder):
            if stack is not None:
                stack.recompute = recompute
        ids, source = ids_of(2, 7), ids_of(2, 5)
        segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).expand(2, -1) if model.config.main.segments else None
        output = model(ids, segments=segments, source=source if model.decoder and model.encoder else None)
        parts = [p for p in (output.logits, output.nsp, output.pooled) if p is not None]
        sum(part.square().sum() for part in parts).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert gradient is not None and gradient.abs().sum() > 0, name
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-5)


def test_realformer_of_the_paper_differs_from_bert4keras_from_the_third_block_on():
    ids = ids_of(1, 6)
    outputs = {}
    for num_layers in (2, 3):
        for kind in ("previous", "cumulative"):
            model = model_of(config_of("bert", score_residual=kind, num_layers=num_layers))
            with torch.no_grad():
                outputs[num_layers, kind] = model(ids).hidden
    torch.testing.assert_close(outputs[2, "previous"], outputs[2, "cumulative"])
    assert not torch.allclose(outputs[3, "previous"], outputs[3, "cumulative"])


def test_a_text_longer_than_the_positions_is_refused_naming_both():
    model = model_of(config_of("gpt2_ml"))
    with pytest.raises(ValueError, match="49 tokens; this model knows 48 positions"):
        model(ids_of(1, 49))
    with pytest.raises(ValueError, match="capacity is 49; the model knows 48 positions"):
        model.new_cache(rows=1, capacity=49)


def test_a_token_more_than_the_cache_has_room_for_is_refused():
    model = model_of(config_of("roformer", mask="causal"))
    cache = model.new_cache(rows=1, capacity=4)
    model(ids_of(1, 4), cache=cache)
    with pytest.raises(ValueError, match="room for 4 tokens; 5 were given"):
        model(ids_of(1, 1), cache=cache)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("family", "changes"), PREFIX)
def test_padded_prefix_rows_equal_unpadded(family, changes, left):
    model, (ids, other) = model_of(config_of(family, **changes)), (ids_of(1, 7), ids_of(1, 10, seed=5))
    segments, pad = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]), (3, 0) if left else (0, 3)
    rows = [
        torch.cat((torch.nn.functional.pad(part, pad), more)) for part, more in ((ids, other), (segments, other % 2))
    ]
    with torch.no_grad():
        padded = model(rows[0], segments=rows[1], mask=rows[0] != 0).logits[:1, pad[0] : 7 + pad[0]]
        torch.testing.assert_close(padded, model(ids, segments=segments).logits, rtol=0, atol=3e-5)


@pytest.mark.parametrize("changes", [{"relative_clip": 5}, {}])
def test_distances_beyond_the_clip_are_cached_too(changes):
    model, ids = model_of(config_of("nezha", mask="causal", **changes)), ids_of(1, 150)
    cache = model.new_cache(rows=1, capacity=150)
    with torch.no_grad():
        parts = [model(part, cache=cache).logits for part in ids.split([100, 1, 49], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=0, atol=3e-5)


def test_hierarchical_positions_beyond_the_table_are_cached_too():
    model, ids = model_of(config_of("bert", mask="causal", hierarchical=0.4)), ids_of(2, 120)
    cache = model.new_cache(rows=2, capacity=120)
    with torch.no_grad():
        parts = [model(part, cache=cache).logits for part in ids.split([40, 30, 1, 49], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=0, atol=3e-5)


def test_conditional_norms_follow_their_condition_with_and_without_the_cache():
    changes = {"condition": 7, "condition_hidden": 5, "condition_activation": "tanh"}
    model, ids = model_of(config_of("gpt2_ml", **changes)), ids_of(2, 10)
    condition = torch.randn(2, 7, generator=torch.Generator().manual_seed(4))
    cache = model.new_cache(rows=2, capacity=10)
    with torch.no_grad():
        whole = model(ids, condition=condition).logits
        parts = [model(part, condition=condition, cache=cache).logits for part in ids.split([4, 1, 5], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=3e-5)
        assert not torch.allclose(model(ids, condition=condition * 0).logits, whole)
    with pytest.raises(ValueError, match=r"norms need a condition; pass condition=\[rows, features\]"):
        model(ids)


def test_what_a_model_needs_and_was_not_given_is_named():
    causal, t5 = model_of(config_of("gpt2_ml")), model_of(config_of("t5.1.1"))
    with pytest.raises(ValueError, match="this model has no encoder"):
        causal.encode(ids_of(1, 3))
    with pytest.raises(ValueError, match="memory is missing; cross-attention"):
        t5(ids_of(1, 3))
    with pytest.raises(ValueError, match="memory is missing; this stack"):
        model_of(config_of("t5.1.1", cross_positions=True))(ids_of(1, 3))
    with pytest.raises(ValueError, match="segments is missing; a prefix mask"):
        model_of(config_of("bert", mask="prefix"))(ids_of(1, 3))
    with pytest.raises(ValueError, match="no output onto its vocabulary; give a configuration"):
        model_of(replace(config_of("bert"), output="none")).logits(torch.zeros(1, 32))


def test_bfloat16_model_is_near_float32():
    model, ids = model_of(config_of("gpt2_ml")), ids_of(2, 12)
    with torch.no_grad():
        exact = model(ids).logits
        coarse = model.bfloat16()(ids).logits.float()
    assert (coarse - exact).abs().max() < 0.06 * exact.abs().max()
