"""Reading: rows that are refused, places in tokens, losses, the choice of a span, extraction by steps, votes, T5."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_pairs import question_rows
from toy_tasks import VOCABULARY, model_folder
from untrained import untrained

import hanmo
from hanmo.errors import ConfigError, DataError
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.network import build
from hanmo.tasks.read import Read, places_of
from hanmo.tasks.read_mlm import Match, ReadMlm, vote
from hanmo.tasks.read_seq2seq import ReadSeq2seq
from hanmo.tasks.rows import Row, read_rows
from hanmo.tasks.task import weighted_mean
from hanmo.tokenizers import WordPiece

TOKENIZER = WordPiece(VOCABULARY)
START = 2  # [CLS], with which a T5 that has BERT's vocabulary begins
KINDS = {"read": Read, "read_mlm": ReadMlm, "read_seq2seq": ReadSeq2seq}
TEXT = "天地玄黄宇宙洪荒日月盈昃辰宿列张"


def task(kind: str = "read", *, max_length: int = 64, **options):
    config = TaskConfig(kind=kind, head="linear", max_length=max_length, options={"max_answer": 4, **options})
    return KINDS[kind](config, TOKENIZER)


def row(text: str = TEXT, answers: object = (), question: str = "日月") -> Row:
    return Row("row 1", {"text": text, "question": question, "answers": list(answers)})


def test_an_answer_is_at_its_place_or_wherever_its_text_is():
    assert places_of(row("天地天", [{"start": 2, "stop": 3}])) == [[(2, 3)]]
    assert places_of(row("天地天", [{"start": 1, "text": "地天"}])) == [[(1, 3)]]
    assert places_of(row("天地天", ["天", "地"])) == [[(0, 1), (2, 3)], [(1, 2)]]
    assert places_of(row("天地天")) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": "天地"}, "'question' is missing; expected a string"),
        ({"text": "天地", "question": " ", "answers": []}, "'question' is empty"),
        ({"text": "天地", "question": "天"}, "'answers' is missing; expected a list"),
        ({"text": "天地", "question": "天", "answers": ["玄"]}, "the answer '玄' is not in the text; leave"),
        ({"text": "天地", "question": "天", "answers": [3]}, "'answers' holds '3'; expected strings or"),
        ({"text": "天地", "question": "天", "answers": [{"start": 0}]}, "'answers' holds .*; expected"),
        (
            {"text": "天地玄", "question": "天", "answers": [{"start": 0, "stop": 1, "text": "天地"}]},
            "the span 0:1 is '天', but its text says '天地'; its end is inclusive",
        ),
    ],
)
def test_a_wrong_row_is_named(kind, data, message):
    with pytest.raises(DataError, match=f"^row 1: {message}"):
        KINDS[kind].settle(TaskConfig(kind=kind), read_rows([data]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_longer_than_max_answer_is_refused(kind):
    one = task(kind)
    with pytest.raises(DataError, match="row 1: an answer has 5 tokens; max_answer is 4"):
        one.train_windows(one.encode(row(answers=[TEXT[:5]])))
    with pytest.raises(ConfigError, match="max_answer is 0; expected a whole number above 0"):
        task(kind, max_answer=0)


def test_the_target_is_the_place_in_the_ids_of_a_window_or_its_first_mark():
    one = task(max_length=16)
    example = one.encode(row(answers=[{"start": 10, "stop": 12}]))
    assert len(example.windows) > 1
    found = []
    for window in example.windows:
        first, last = one.target(example, window)["place"]
        if last:
            assert [window.ids[first], window.ids[last]] == [VOCABULARY.index("盈"), VOCABULARY.index("昃")]
        found.append(bool(last))
    assert True in found and False in found


def test_the_loss_of_a_span_is_the_mean_cross_entropy_of_its_ends():
    one = task()
    examples = [one.encode(row(answers=[{"start": 1, "stop": 3}])), one.encode(row("天地玄"))]
    arrays = one.collate([(example, example.windows[0]) for example in examples])
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    logits = torch.randn(*batch["ids"].shape, 2, generator=torch.Generator().manual_seed(0))
    expected = []
    for number, (example, place) in enumerate(zip(examples, arrays["place"], strict=True)):
        values = logits[number, : len(example.windows[0])].double().numpy()
        logs = values - np.log(np.exp(values).sum(0))
        expected.append(-(logs[place[0], 0] + logs[place[1], 1]) / 2)
    assert arrays["place"].tolist() == [[5, 6], [0, 0]]
    assert one.losses(logits, batch).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_best_span_of_all_is_taken():
    one = Read(replace(task(unanswered=True).config, thresholds={"answer": 0.0}), TOKENIZER)
    example = one.encode(row())
    part = example.windows[0].parts[1]
    logits = np.random.default_rng(0).normal(size=(len(example.windows[0]), 2)).astype(np.float32)
    inside = logits[part.at : part.at + len(part)].astype(float)
    spans = {
        (first, last): inside[first, 0] + inside[last, 1]
        for first in range(len(TEXT))
        for last in range(first, min(len(TEXT), first + 4))
    }
    first, last = max(spans, key=spans.__getitem__)
    result = one.decode(example, [np.pad(logits, ((0, 3), (0, 0)), constant_values=99)])
    assert (result["start"], result["stop"], result["answer"]) == (first, last + 1, TEXT[first : last + 1])
    odds = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(0)
    assert result["probability"] == pytest.approx(odds[part.at + first, 0] * odds[part.at + last, 1], rel=1e-9)
    logits[0] = 9
    odds = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(0)
    none = {"answer": "", "start": None, "stop": None, "probability": pytest.approx(odds[0].prod(), rel=1e-9)}
    assert one.decode(example, [logits]) == none
    assert task().decode(example, [logits])["start"] == first


@pytest.mark.parametrize(
    ("lengths", "margins", "before", "above", "below", "after"),
    [
        ((1, 0, 1, 0), (3.0, 1.0, 2.0, -1.0), 0.75, 1, 2, 1),
        ((1, 0, 9, 9), (3.0, 2.0, 1.5, 1.0), 0.35, 2, 3, 0.5),  # a better answer may gain less than a wrong one loses
        ((1, 0), (3.0, -1.0), 1, -1e-9, 1e-9, 1),
    ],
)
def test_how_sure_an_answer_has_to_be_is_chosen_on_dev_rows(lengths, margins, before, above, below, after):
    one = task(unanswered=True)
    rows = [row(TEXT, [TEXT[:length]] if length else []) for length in lengths]
    examples, outputs = [one.encode(each) for each in rows], []
    for example, margin in zip(examples, margins, strict=True):
        logits = np.zeros((len(example.windows[0]), 2), np.float32)
        logits[0, 0], logits[example.windows[0].parts[1].at] = 10.0 - margin, 5.0
        outputs.append([logits])
    results = [one.decode(*each) for each in zip(examples, outputs, strict=True)]
    assert "sides" not in results[0]
    one.fitting = True
    results = [one.decode(*each) for each in zip(examples, outputs, strict=True)]
    assert one.measure(rows, results)["f1"] == before
    config, cut = one.calibrate(rows, results)
    assert above < config.thresholds["answer"] < below
    assert one.measure(rows, cut)["f1"] == after
    assert [Read(config, TOKENIZER).decode(*each) for each in zip(examples, outputs, strict=True)] == cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_passage_without_a_token_has_no_answer(kind, tmp_path):
    pipeline = untrained(tmp_path, task(kind).config)
    result = pipeline.predict({"text": "\u200b", "question": "日月"})
    assert (result["answer"], result["start"], result["stop"]) == ("", None, None)


def test_an_answer_past_the_first_window_has_the_offsets_of_the_text():
    one, text = task(max_length=16), TEXT + "　😀" + TEXT[::-1]
    example = one.encode(row(text))
    outputs = []
    for window in example.windows:
        logits = np.zeros((len(window), 2), np.float32)
        place = window.parts[1].place(17, 18)
        if place is not None:
            logits[place[0]] = 5
        outputs.append(logits)
    result = one.decode(example, outputs)
    assert text[result["start"] : result["stop"]] == result["answer"] == "张"
    assert result["start"] > 16


def original(passage: list[int], probabilities: np.ndarray, end: int) -> tuple[list[int], float]:
    """Choose as bert4keras does: by the set of all n-grams of the passage and its end mark."""
    passage, chosen, total = [*passage, end], [], 0.0
    for step, row in enumerate(probabilities):
        allowed = {end}
        for at in range(len(passage) - step):
            if passage[at : at + step] == chosen:
                allowed.add(passage[at + step])
        masked = np.zeros_like(row)
        masked[list(allowed)] = row[list(allowed)]
        chosen.append(int(masked.argmax()))
        total += masked.max()
        if chosen[-1] == end:
            break
    return [id for id in chosen if id != end], total / (step + 1)


@pytest.mark.parametrize("seed", range(20))
def test_tokens_are_chosen_as_in_bert4keras(seed):
    draw = np.random.default_rng(seed)
    passage = draw.integers(1, 6, 12).tolist()
    probabilities = draw.dirichlet(np.ones(8) / 2, 6)
    match = Match(passage, 7)
    for one in probabilities:
        match.push(one)
        if match.done:
            break
    ids, score = original(passage, probabilities, 7)
    place = match.place or (0, 0)
    assert passage[slice(*place)] == ids
    assert match.score == pytest.approx(score, rel=1e-12)


def test_votes_are_those_of_bert4keras():
    assert vote({"天": [0.5, 0.9], "地": [0.8]}) == pytest.approx({"天": 1.06 / 2.4, "地": 0.64 / 1.8})


@pytest.mark.parametrize("kind", ["read_mlm", "read_seq2seq"])
def test_windows_vote_for_an_answer(kind):
    one = task(kind, max_length=24)
    example = one.encode(row(TEXT))
    assert len(example.windows) > 1
    found = [((0, 2), 0.6), *[(None, 0.9)] * (len(example.windows) - 2), ((1, 3), 0.8)]
    start = example.windows[-1].parts[0].start + 1
    expected = {"answer": TEXT[start : start + 2], "start": start, "stop": start + 2}
    result = one.decode(example, found)
    assert result == expected | {"score": pytest.approx(0.64 / 1.8)}
    assert one.decode(example, [(None, 0.9)] * len(example.windows))["answer"] == ""


def test_masks_take_the_place_of_the_answer():
    one = task("read_mlm")
    example = one.encode(row("天地玄黄", ["地玄"]))
    window = example.windows[0]
    assert TOKENIZER.decode(window.ids[1:5]) == "天地玄黄"
    assert window.ids[-5:] == [TOKENIZER.special.mask] * 5
    assert window.segments == [0] * (len(window) - 5) + [1] * 5
    target = one.target(example, window)
    assert target["answer"].tolist() == [VOCABULARY.index("地"), VOCABULARY.index("玄"), 3]
    assert target["weight"] == 3


def t5_config(rows: int):
    data = {
        "model_type": "t5", "vocab_size": rows, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "relu", "decoder_start_token_id": 0, "tie_word_embeddings": True,
        "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-6,
    }  # fmt: skip
    names = FAMILIES["t5.1.0"].huggingface
    assert names is not None
    return names.config(data)


@pytest.mark.parametrize("family", ["unilm", "t5"])
def test_the_loss_of_writing_is_that_of_each_answer_alone(family, tmp_path):
    one = task("read_seq2seq")
    if family == "t5":
        model = Model(t5_config(len(VOCABULARY))).initialize(0)
    else:
        model = hanmo.load(model_folder(tmp_path / "model")).model
    network = build(model, one).eval()
    rows = [row(answers=["地玄"]), row("天地玄", [], "荒荒荒荒"), row("天地玄黄", ["黄"])]
    examples = [one.encode(each) for each in rows]
    arrays = one.collate([(example, example.windows[0]) for example in examples])
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.inference_mode():
        found = one.losses(network(batch), batch)
        total = 0.0
        for number, example in enumerate(examples):
            prompt, answer = example.windows[0].ids, one.target(example, example.windows[0])["answer"].tolist()
            if family == "t5":
                written = torch.tensor([[START, *answer[:-1]]])
                logits = network.backbone(written, source=torch.tensor([prompt])).logits[0]
            else:
                ids = torch.tensor([[*prompt, *answer]])
                segments = torch.tensor([[0] * len(prompt) + [1] * len(answer)])
                logits = network.backbone(ids, segments=segments).logits[0, len(prompt) - 1 : -1]
            losses = -logits.log_softmax(-1)[range(len(answer)), answer]
            assert float(found[number]) == pytest.approx(float(losses.mean()), abs=1e-5)
            total += float(losses.sum())
    tokens = sum(len(one.target(example, example.windows[0])["answer"]) for example in examples)
    assert float(weighted_mean(found, batch["weight"])) == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.parametrize("family", ["unilm", "t5"])
def test_a_written_answer_is_the_likeliest_part_of_the_passage_at_each_step(family, tmp_path):
    one = task("read_seq2seq")
    if family == "t5":
        model = Model(t5_config(len(VOCABULARY))).initialize(1)
    else:
        model = hanmo.load(model_folder(tmp_path / "model")).model
    network = build(model, one).eval()
    examples = [one.encode(each) for each in (row(), row("天地玄", [], "荒荒荒荒"))]
    arrays = one.collate([(example, example.windows[0]) for example in examples], targets=False)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.inference_mode():
        found = one.infer(network, batch)
    for example, (place, score) in zip(examples, found, strict=True):
        prompt, match, written = example.windows[0].ids, Match(example.tokens[0].ids, 3), []
        while not match.done and match.steps < 5:
            with torch.inference_mode():
                if family == "t5":
                    logits = network.backbone(torch.tensor([[START, *written]]), source=torch.tensor([prompt])).logits
                else:
                    segments = torch.tensor([[0] * len(prompt) + [1] * len(written)])
                    logits = network.backbone(torch.tensor([[*prompt, *written]]), segments=segments).logits
            written.append(match.push(logits[0, -1].softmax(-1).numpy()))
        assert place == match.place
        assert score == pytest.approx(match.score, abs=1e-5)


@pytest.mark.slow
def test_a_t5_answers(tmp_path):
    base = tmp_path / "t5"
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    hanmo.save(Model(replace(t5_config(len(VOCABULARY)), initializer=0.1)).initialize(0), base, tokenizer=[vocabulary])
    config = TaskConfig(kind="read_seq2seq", max_length=32, options={"max_answer": 3})
    args = TaskArgs(epochs=1, batch=16, lr=1e-3)
    fit(base, train=question_rows(48), dev=question_rows(16, seed=1), config=config, out=tmp_path / "run", args=args)
    loaded = hanmo.load(tmp_path / "run")
    result = loaded.predict({"text": "云a地玄b黄", "question": "aa"})
    assert result["answer"] == "" or "云a地玄b黄"[result["start"] : result["stop"]] == result["answer"]


def test_a_model_without_an_output_onto_its_vocabulary_cannot_write(tmp_path):
    model = hanmo.load(model_folder(tmp_path / "model")).model
    with pytest.raises(ConfigError, match="this bert has no output onto its vocabulary"):
        task("read_seq2seq").network(replace(model.config, output="none"))


@pytest.mark.parametrize("kind", ["read", "read_mlm"])
def test_answers_by_openvino_equal_those_of_torch(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pipeline = untrained(tmp_path, task(kind, max_length=24).config)
    rows = [{"text": text, "question": "日月"} for text in (TEXT, TEXT[:4], TEXT * 3)]
    by_torch = pipeline.predict(rows)
    for ours, theirs in zip(pipeline.use_openvino(threads=1).predict(rows), by_torch, strict=True):
        odds = "probability" if kind == "read" else "score"
        assert ours.pop(odds) == pytest.approx(theirs.pop(odds), abs=1e-4)
        assert ours == theirs


def test_openvino_refuses_a_unilm(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pipeline = untrained(tmp_path, task("read_seq2seq").config)
    with pytest.raises(ConfigError, match="is a UniLM, whose answers OpenVINO does not compute here; use torch"):
        pipeline.use_openvino()


def test_both_ends_are_distributions_over_the_real_tokens():
    one = task()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    outputs = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    (found,) = one.logits(outputs, {"mask": mask})
    odds = found.values.softmax(-1)
    assert odds.shape == (2, 2, 3)
    assert odds[1, :, 2].tolist() == [0, 0]
    assert torch.allclose(odds[0], outputs[0].softmax(0).T)
