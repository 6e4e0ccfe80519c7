"""Embedding: losses against formulas, gradients against differences, forms by the data, whitening, search."""

import math

import numpy as np
import pytest
import torch
from toy_pairs import alike_rows, similar_rows
from toy_tasks import VOCABULARY, model_folder

import hanmo
from hanmo.errors import ConfigError, DataError
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.embed import Embed, contrastive, cosent, fit_whitening, infonce, nearest
from hanmo.tasks.pipeline import EmbedPipeline
from hanmo.tasks.rows import read_rows
from hanmo.tasks.task import weighted_mean
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)
REAL = torch.ones(6, dtype=torch.bool)


def vectors(seed: int = 0, pairs: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pairs, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)


def different_ids(pairs: int = 6) -> torch.Tensor:
    return torch.arange(pairs * 2).view(pairs, 2, 1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_cosent_is_the_sum_over_ordered_pairs(scale):
    x, scores = vectors(), [0.0, 2.0, 1.0, 1.0, 3.0, 0.0]
    cosines = [cosine(a, b) for a, b in x.detach().numpy()]
    total = 1.0
    for i in range(6):
        for j in range(6):
            if scores[i] < scores[j]:
                total += math.exp(scale * (cosines[i] - cosines[j]))
    ours = cosent(x, torch.tensor(scores), REAL, scale=scale)
    assert ours.tolist() == pytest.approx([math.log(total)] * 6, rel=1e-12)


def test_cosent_of_equal_scores_is_zero():
    assert cosent(vectors(), torch.ones(6), REAL).tolist() == [0.0] * 6


def test_contrastive_is_the_square_of_the_distance_or_of_what_lacks_to_the_margin():
    x, similar = vectors(1), [True, False, True, False, False, True]
    expected = []
    for (a, b), same in zip(x.detach().numpy(), similar, strict=True):
        distance = 1 - cosine(a, b)
        expected.append(distance**2 / 2 if same else max(0.0, 0.9 - distance) ** 2 / 2)
    assert contrastive(x, torch.tensor(similar), margin=0.9).tolist() == pytest.approx(expected, rel=1e-12)
    assert min(expected) == 0 or len({round(value, 9) for value in expected}) == 6


@pytest.mark.parametrize("scale", [5.0, 30.0])
def test_infonce_finds_each_text_among_all_others_of_the_batch(scale):
    x = vectors(2)
    flat = x.detach().numpy().reshape(12, 5)
    expected = []
    for i in range(12):
        partner = i + 1 if i % 2 == 0 else i - 1
        candidates = [math.exp(scale * cosine(flat[i], flat[k])) for k in range(12) if k != i]
        expected.append(math.log(sum(candidates)) - scale * cosine(flat[i], flat[partner]))
    pairs = np.array(expected).reshape(6, 2).mean(1)
    assert infonce(x, different_ids(), REAL, scale=scale).tolist() == pytest.approx(pairs.tolist(), rel=1e-10)


def test_infonce_takes_no_equal_text_as_a_negative():
    x, ids = vectors(3), different_ids()
    ids[3] = ids[0]
    flat, equal = x.detach().numpy().reshape(12, 5), [6, 7]
    candidates = [20 * cosine(flat[0], flat[k]) for k in range(1, 12) if k not in equal]
    first = math.log(sum(map(math.exp, candidates))) - 20 * cosine(flat[0], flat[1])
    candidates = [20 * cosine(flat[1], flat[k]) for k in range(12) if k not in (1, *equal)]
    second = math.log(sum(map(math.exp, candidates))) - 20 * cosine(flat[1], flat[0])
    assert float(infonce(x, ids, REAL)[0].detach()) == pytest.approx((first + second) / 2, rel=1e-10)


@pytest.mark.parametrize("loss", ["cosent", "contrastive", "infonce"])
def test_gradients_are_those_of_the_differences(loss):
    score = torch.tensor([0.0, 2.0, 1.0, 1.0, 3.0, 0.0])

    def value(x: torch.Tensor) -> torch.Tensor:
        if loss == "cosent":
            return cosent(x, score, REAL, scale=3.0).mean()
        if loss == "contrastive":
            return contrastive(x, score > 0, margin=0.7).mean()
        return infonce(x, different_ids(), REAL, scale=3.0).mean()

    assert torch.autograd.gradcheck(value, vectors(4), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("loss", ["cosent", "infonce"])
def test_rows_that_fill_a_batch_change_nothing(loss):
    x, score = vectors(5), torch.tensor([0.0, 2.0, 1.0, 1.0, 3.0, 0.0])
    real = torch.tensor([True] * 4 + [False] * 2)
    if loss == "cosent":
        found, alone = cosent(x, score, real), cosent(x[:4], score[:4], REAL[:4])
    else:
        found, alone = infonce(x, different_ids(), real), infonce(x[:4], different_ids(4), REAL[:4])
    assert torch.isfinite(found).all()
    assert weighted_mean(found, real.double()).item() == pytest.approx(alone.mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("row", "form", "measure"),
    [
        ({"a": "天", "b": "地", "score": 0.5}, "cosent", "spearman"),
        ({"a": "天", "b": "地", "label": "1"}, "cosent", "spearman"),
        ({"a": "天", "b": "地"}, "infonce", "mrr"),
        ({"text": "天"}, "simcse", "spearman"),
    ],
)
def test_the_data_tells_the_form_and_the_measure(row, form, measure):
    config = Embed.settle(TaskConfig(kind="embed"), read_rows([row]))
    assert (config.form, config.options["measure"]) == (form, measure)


@pytest.mark.parametrize(
    ("row", "form", "message"),
    [
        ({"text": "天"}, "cosent", "it has one text; 'cosent' needs a pair"),
        ({"a": "天", "b": "地"}, "contrastive", "'score' is missing; 'contrastive' needs one for each pair"),
        ({"a": "天", "b": "地", "score": "很像"}, "cosent", "'score' is '很像'; expected a finite number"),
        ({"a": "天", "b": "地", "score": float("inf")}, "cosent", "'score' is 'inf'; expected a finite number"),
        ({"a": "天", "b": "地", "label": True}, "infonce", "'label' is 'True'; expected a finite number"),
        ({"a": "天", "b": ""}, "infonce", "'b' is empty"),
    ],
)
def test_a_wrong_row_is_named(row, form, message):
    with pytest.raises(DataError, match=f"^row 1: .*{message}"):
        Embed.settle(TaskConfig(kind="embed", form=form), read_rows([row]))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temper": 1}, "the option 'temper' is unknown"), ({"measure": "f1"}, "measure is 'f1'; expected 'spearman'")],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Embed(TaskConfig(kind="embed", form="cosent", head="linear", options=options), TOKENIZER)


def test_dev_rows_without_scores_are_refused(tmp_path):
    base, rows = model_folder(tmp_path / "model"), [{"text": "天地玄黄"}, {"text": "宇宙洪荒"}]
    with pytest.raises(DataError, match="row 1: dev rows of 'embed' need 'a', 'b' and a 'score'"):
        config = TaskConfig(kind="embed", dropout=0.1)
        fit(base, train=rows, dev=rows, config=config, out=tmp_path / "run", args=TaskArgs(epochs=1))


def test_pairs_that_are_not_similar_are_left_out_of_infonce():
    task = Embed(TaskConfig(kind="embed", form="infonce", head="linear", max_length=16), TOKENIZER)
    rows = read_rows([{"a": "天", "b": "地", "score": score} for score in (0, 1)])
    assert [len(task.train_windows(task.encode(row))) for row in rows] == [0, 1]


def test_simcse_reads_each_text_twice():
    task = Embed(TaskConfig(kind="embed", form="simcse", head="linear", max_length=16), TOKENIZER)
    example = task.encode(read_rows([{"a": "天地", "b": "玄黄宇"}])[0])
    batch = task.collate([(example, window) for window in task.train_windows(example)])
    assert batch["ids"].shape == (2, 2, 5)
    assert (batch["ids"][:, 0] == batch["ids"][:, 1]).all()
    assert batch["mask"].sum(-1).tolist() == [[4, 4], [5, 5]]


def test_reciprocal_rank_is_of_the_text_among_the_others():
    task = Embed(TaskConfig(kind="embed", form="infonce", head="linear", options={"measure": "mrr"}), TOKENIZER)
    rows = read_rows([{"a": "天", "b": "一"}, {"a": "地", "b": "二"}, {"a": "玄", "b": "三"}])
    basis = np.eye(3).tolist()
    right = [{"score": 1.0, "vectors": [basis[n], basis[n]]} for n in range(3)]
    assert task.measure(rows, right) == {"mrr": 1.0}
    turned = [{"score": 0.0, "vectors": [basis[(n + 1) % 3], basis[n]]} for n in range(3)]
    assert task.measure(rows, turned)["mrr"] == pytest.approx(1 / 2.5)


def test_whitened_vectors_have_the_covariance_of_the_identity():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6)) @ draw.normal(size=(6, 6)) + draw.normal(size=6)
    kernel, bias = fit_whitening(x, 4)
    made = (x + bias) @ kernel
    assert np.cov(made.T) == pytest.approx(np.eye(4), abs=1e-9)
    total = np.linalg.eigvalsh(np.cov(x.T))[::-1][:4]
    assert (kernel**2).sum(0) == pytest.approx(1 / total, rel=1e-9)


def test_whitening_needs_texts_of_enough_rank():
    with pytest.raises(DataError, match="size is 4, but the 3 texts have a rank of 2; give more texts, or less"):
        fit_whitening(np.random.default_rng(0).normal(size=(3, 6)), 4)


def test_nearest_is_the_sorted_product():
    draw = np.random.default_rng(0)
    queries, matrix = draw.normal(size=(3, 8)).astype(np.float32), draw.normal(size=(40, 8)).astype(np.float32)
    for found, query in zip(nearest(queries, matrix, 5), queries, strict=True):
        products = (query[None] @ matrix.T)[0]
        assert [row for row, _ in found] == np.argsort(-products)[:5].tolist()
    assert nearest(queries, matrix[:0], 5) == [[], [], []]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> EmbedPipeline:
    folder = tmp_path_factory.mktemp("embed")
    base = model_folder(folder / "model")
    config = TaskConfig(kind="embed", pooling="mean", form="simcse", dropout=0.1)
    rows = [{"text": row["a"]} for row in alike_rows(32)]
    fit(base, train=rows, dev=similar_rows(20), config=config, out=folder / "run", args=TaskArgs(epochs=1, batch=8))
    pipeline = hanmo.load(folder / "run")
    assert isinstance(pipeline, EmbedPipeline)
    return pipeline


def test_search_finds_a_text_itself(loaded):
    texts = [row["a"] for row in alike_rows(30)]
    matrix = loaded.encode(texts)
    assert matrix.shape == (30, 32) and matrix.dtype == np.float32
    assert np.linalg.norm(matrix, axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    found = loaded.search(texts[:3], matrix, k=2)
    assert [(row, round(score, 4)) for (row, score), _ in found] == [(0, 1), (1, 1), (2, 1)]
    similarity = loaded.similarity(texts[0], texts[1:3])
    assert similarity[0] == pytest.approx([loaded.predict([(texts[0], t)])[0]["score"] for t in texts[1:3]], abs=1e-5)
    with pytest.raises(DataError, match=r"vectors are \(30, 5\); expected \(texts, 32\)"):
        loaded.search(texts[:1], matrix[:, :5])


def test_a_prediction_leaves_the_model_without_dropout(loaded):
    loaded.predict("天地")
    assert loaded.config.main.dropout and not any(module.training for module in loaded.network.modules())


def test_the_vector_of_a_long_text_is_the_mean_of_its_windows(loaded):
    text = "天地玄黄宇宙洪荒" * 12
    example = loaded.task.encode(read_rows([{"text": text}])[0])
    assert len(example.windows) > 1
    parts = [window.parts[0] for window in example.windows]
    vectors = loaded.encode([text[part.start : part.stop] for part in parts], pool="mean")
    mean = np.average(vectors, axis=0, weights=[len(part) for part in parts])
    assert loaded.encode(text)[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_whitening_is_saved_with_the_task(loaded, tmp_path):
    texts = [row["a"] for row in alike_rows(50)]
    plain = loaded.encode(texts, pool="mean").astype(np.float64)
    copy = hanmo.load(loaded.save(tmp_path / "plain"))
    copy.whiten(texts, size=4)
    again = hanmo.load(copy.save(tmp_path / "white"))
    kernel, bias = fit_whitening(plain, 4)
    expected = (plain + bias) @ kernel
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    signs = np.sign((again.encode(texts) * expected).sum(0))
    assert again.encode(texts) * signs == pytest.approx(expected, abs=1e-3)
    assert (again.encode(texts) == copy.encode(texts)).all()


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_the_pooler_has_the_activation_of_the_options(tmp_path, activation):
    model = hanmo.load(model_folder(tmp_path / "model")).model
    options = {"pooler": activation}
    task = Embed(TaskConfig(kind="embed", form="cosent", head="linear", options=options), TOKENIZER)
    assert task.network(model.config).pool == activation


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "simcse"}, "the model has no dropout, so SimCSE would compare equal vectors; set dropout=0.1"),
        ({"options": {"whitening": 8}}, "the option 'whitening' is not trained; train without it, then call `whiten`"),
    ],
)
def test_what_training_cannot_use_is_refused(tmp_path, settings, message):
    base, rows = model_folder(tmp_path / "model"), similar_rows(8)
    with pytest.raises(ConfigError, match=message):
        fit(base, train=rows, dev=rows, config=TaskConfig(kind="embed", **settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
