"""What `hanmo bench` measures: counts that must agree, bits per character against `ModelPipeline.score`, pictures."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hanmo
from hanmo.bench import machine, picture
from hanmo.bench.machine import MemoryReader, describe, memory
from hanmo.bench.picture import draw
from hanmo.bench.quality import KINDS, measure_quality
from hanmo.bench.speed import Case, fitting, measure, measure_cases
from hanmo.bench.subject import Subject, bytes_per_token, measure_start
from hanmo.checkpoint.safetensors import Safetensors
from hanmo.checkpoint.save import save
from hanmo.errors import CheckpointError, ConfigError, DataError, MissingExtra, MissingFile
from hanmo.families import FAMILIES
from hanmo.generate.loop import QueueingEngine
from hanmo.inference.cuda.engine import StaticEngine
from hanmo.inference.openvino.engine import open_weights
from hanmo.model import Model
from hanmo.tokenizers.lossless import Lossless

GOLDENS = Path(__file__).parent / "data" / "goldens"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气不错可以去跑步床前明月光疑是地上霜，。"]
TEXTS = ["今天天气不错，可以去跑步。" * 9, "床前明月光，喵疑是地上霜。" * 3]


def checkpoint(folder, words):
    config = FAMILIES["gpt2_ml"].tensorflow.config(
        {
            "vocab_size": len(words),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        }
    )
    model = Model(config).initialize(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that its opinions are strong enough for rounding to show
    save(model, folder / "model.ckpt", form="tensorflow")
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    return folder / "model.ckpt"


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory):
    """Keep converted weights in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("kept")))
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("small"), WORDS)


@pytest.fixture(scope="module")
def measured(small):
    return measure(Subject(small, threads=1), quick=True)


def numbers(value):
    """Give all numbers of a result."""
    if isinstance(value, dict):
        return [each for one in value.values() for each in numbers(one)]
    if isinstance(value, list):
        return [each for one in value for each in numbers(one)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_a_result_is_complete_and_its_numbers_are_above_zero(measured):
    assert {name: set(part) for name, part in measured.items()} == {
        "model": set("path family parameters positions weights weights_bytes to_float32 answers".split()),
        "machine": set("processor cores load memory_bytes gpu system versions date device threads".split()),
        "start": {
            *"conversion_seconds open_seconds first_token_seconds torch_imported".split(),
            *"anonymous_bytes resident_bytes peak_bytes gpu_peak_bytes anonymous_per_weights".split(),
        },
        "lengths": {"rows", "longest_to_shortest"},
        "batches": {"tokens", "rows"},
        "bandwidth": set("method array_bytes bytes_per_second weights_bytes_per_token share".split()),
        "writing": {"prompt", "max_characters", "characters_per_second"},
    }
    found = numbers(measured)
    assert found.pop(found.index(measured["machine"]["load"])) >= 0
    assert len(found) > 40 and min(found) > 0
    assert json.loads(json.dumps(measured)) == measured


def test_the_ratios_of_a_result_agree_with_its_times(measured):
    rows, batches, read = measured["lengths"]["rows"], measured["batches"]["rows"], measured["bandwidth"]
    assert [row["tokens"] for row in rows] == [16, 50] and measured["batches"]["tokens"] == 50
    assert [row["rows"] for row in batches] == [1, 8, 32]
    assert measured["lengths"]["longest_to_shortest"] == rows[-1]["token_seconds"] / rows[0]["token_seconds"]
    assert rows[-1]["prompt_tokens_per_second"] == 50 / rows[-1]["first_token_seconds"]
    assert batches[0]["step_seconds"] == rows[-1]["token_seconds"] and batches[0]["times_one"] == 1
    assert batches[2]["tokens_per_second"] == pytest.approx(batches[2]["times_one"] * batches[0]["tokens_per_second"])
    speed = read["weights_bytes_per_token"] / batches[0]["step_seconds"]
    assert read["share"] == pytest.approx(speed / read["bytes_per_second"])
    assert measured["machine"]["threads"] == 1 and measured["model"]["weights"] == "int8"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_the_start_is_a_fresh_process_without_torch(measured):
    start = measured["start"]
    assert start["open_seconds"] < start["first_token_seconds"]
    assert not start["torch_imported"] and start["conversion_seconds"] > 0
    assert start["anonymous_bytes"] < start["resident_bytes"] <= start["peak_bytes"]
    assert start["anonymous_per_weights"] == start["anonymous_bytes"] / measured["model"]["weights_bytes"]


@pytest.mark.slow
def test_weights_that_were_kept_are_not_converted_again(measured, small):
    found = measure(Subject(small, mask="causal"), quick=True)
    assert found["start"]["conversion_seconds"] is None
    assert found["machine"]["threads"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mask"), [("t5_1.1", None), ("bert", "prefix")])
def test_other_models_that_write_are_measured_too(name, mask):
    found = measure(Subject(GOLDENS / name, weights="float32", mask=mask, threads=1), quick=True)
    lengths = [16, 128, 256, 512, 1000] if mask is None else [16, 34]
    assert [row["tokens"] for row in found["lengths"]["rows"]] == lengths
    assert found["model"]["answers"] == (mask is None) and found["writing"] is None
    assert found["model"]["to_float32"] == pytest.approx(1, rel=0.02)


@pytest.mark.slow
def test_weights_that_write_runs_with_torch_are_measured_with_torch(small):
    found = measure(Subject(small, weights="float32"), quick=True)
    assert found["start"]["torch_imported"] and found["start"]["conversion_seconds"] is None
    assert found["machine"]["gpu"] is None and found["bandwidth"]["share"] > 0
    assert found["model"]["to_float32"] == 1


@pytest.mark.parametrize(
    ("name", "mask"), [("gpt2_ml", None), ("t5_1.0", None), ("t5_1.1", None), ("albert", "causal"), ("bert", "prefix")]
)
def test_both_engines_count_the_same_bytes_a_token(name, mask):
    subject = Subject(GOLDENS / name / "model.ckpt", weights="float32", mask=mask)
    writer = subject.open()
    kept = Safetensors(open_weights(subject.path, weights="float32").path)
    counts = [subject.sizes(writer), {name: info.nbytes for name, info in kept.tensors.items()}]
    assert bytes_per_token(writer.config, counts[0]) == bytes_per_token(writer.config, counts[1]) > 0


def test_what_a_token_reads_leaves_out_what_it_only_looks_up():
    config = hanmo.load(GOLDENS / "t5_1.1" / "model.ckpt").config
    sizes = {"decoder.blocks.0.cross.key_value.weight": 1, "encoder.norm.weight": 2, "token.weight": 4}
    sizes |= {"decoder.relative.weight": 8, "decoder.blocks.0.cross.query.weight": 16, "output.weight": 32}
    assert not config.tied and bytes_per_token(config, sizes) == 48
    shared = hanmo.load(GOLDENS / "albert" / "model.ckpt").config
    sizes = {"encoder.blocks.0.attention.output.weight": 1, "encoder.embedding.position.weight": 1000}
    sizes |= {"token.weight": 10, "pooler.dense.weight": 100}
    assert shared.tied and bytes_per_token(shared, sizes) == shared.main.num_layers + 10


def test_lengths_that_do_not_fit_are_one_that_does():
    assert fitting([16, 128, 1000], None) == [16, 128, 1000]
    assert fitting([16, 128, 1000], 1024) == [16, 128, 1000]
    assert fitting([16, 128, 1000], 512) == [16, 128, 498]
    assert fitting([16, 128, 1000], 20) == [10] and fitting([16], 4) == [1]


class Counting:
    """An engine that notes what it is asked for."""

    vocab_size, max_positions = 9, None

    def __init__(self):
        self.asked = []

    def prefill(self, prompts, *, room):
        self.asked.append((len(prompts[0]), room))
        return self, np.eye(1, 9)

    def reorder(self, rows):
        self.asked.append(list(rows))

    def step(self, ids):
        self.asked.append(len(ids))
        return np.ones((len(ids), 9))


def test_cases_take_turns_after_a_round_that_is_not_counted():
    engine, cases, turns = Counting(), [Case(4, 1), Case(7, 3)], []
    times = measure_cases(engine, cases, rounds=2, between=lambda: turns.append(len(engine.asked)))
    turn = [(4, 14), *[1] * 14, (7, 14), [0, 0, 0], *[3] * 14]
    assert engine.asked == [*turn, *turn, *turn] and turns == [len(turn), 2 * len(turn)]
    assert [(len(of.prompts), len(of.steps)) for of in times.values()] == [(2, 24), (2, 24)]
    longer = measure_cases(Counting(), cases, rounds=1, seconds=0.05)
    assert len(longer[cases[0]].prompts) > 1


def test_an_engine_with_a_queue_is_asked_ahead(small):
    engine = StaticEngine(hanmo.load(small).model)
    assert isinstance(engine, QueueingEngine)
    times = measure_cases(engine, [Case(4, 1), Case(7, 3)], rounds=2)
    assert [len(of.steps) for of in times.values()] == [24, 24]
    assert all(step > 0 for of in times.values() for step in of.steps + of.prompts)


def test_memory_is_read_and_told(monkeypatch):
    monkeypatch.setattr(machine, "_largest_cache", lambda: 1 << 19)
    assert [MemoryReader(threads=2, least=least).nbytes for least in (1, 1 << 23)] == [1 << 22, 1 << 23]
    assert MemoryReader(threads=2, least=1 << 22).read() > 1e6
    assert describe()["gpu"] is None and describe()["versions"]["numpy"] == np.__version__
    monkeypatch.setattr(machine, "_line", lambda path, name: None)
    assert memory() == {"anonymous": None, "resident": None, "peak": None}
    assert describe()["processor"] and describe()["memory_bytes"] is None


@pytest.mark.slow
def test_a_start_that_fails_passes_its_error_on(monkeypatch):
    subject = Subject(GOLDENS / "gpt2_ml", weights="float32", mask="prefix")
    with pytest.raises(ConfigError, match="mask is 'prefix', but a gpt2_ml writes already"):
        measure_start(subject, [1, 2])
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(CheckpointError, match=r"a fresh process that opened .*gpt2_ml ended with 1: is there enough"):
        measure_start(subject, [1, 2])


def test_what_does_not_run_on_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="device is 'cuda' and weights are int4; these run on a CPU"):
        measure(Subject(GOLDENS / "gpt2_ml", weights="int4", device="cuda"))


@pytest.mark.parametrize(
    ("name", "message"), [("bert", "bidirectional; give mask='prefix'"), ("electra", "no output onto its vocabulary")]
)
def test_a_plain_encoder_is_refused_before_it_is_converted(name, message):
    with pytest.raises(CheckpointError, match=rf"is a plain encoder \({name}\), and what is measured .*{message}"):
        measure(Subject(GOLDENS / name))


def write_texts(folder, texts):
    path = folder / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def test_bits_in_float32_are_those_of_score_and_rounding_costs_little(small, tmp_path):
    loaded = hanmo.load(small)
    scores = [loaded.score(text) for text in TEXTS]
    for count in (1, 2):
        found = measure_quality(Subject(small), write_texts(tmp_path, TEXTS), documents=count)
        spent = sum(score.bits_per_char * (len(text) - 1) for score, text in zip(scores, TEXTS[:count], strict=False))
        expected = spent / (sum(map(len, TEXTS[:count])) - count)
        assert [row["weights"] for row in found["rows"]] == list(KINDS)
        assert found["rows"][0]["bits_per_character"] == pytest.approx(expected, abs=1e-4)
        for row, bound in zip(found["rows"], (0, 0.01, 0.02, 0.3), strict=True):
            assert row["to_float32"] == row["bits_per_character"] / found["rows"][0]["bits_per_character"]
            assert abs(row["to_float32"] - 1) <= bound
        assert (found["documents"], found["unknown"], found["too_short"]) == (count, 3 * (count - 1), 0)
    assert len({row["bits_per_character"] for row in found["rows"]}) == 4


def test_unknown_characters_cost_what_telling_them_apart_does(small, tmp_path):
    path = write_texts(tmp_path, TEXTS[1:])
    plain, told = (measure_quality(Subject(small), path, distinct_unknown=n)["rows"] for n in (0, 7))
    cost = told[2]["bits_per_character"] - plain[2]["bits_per_character"]
    assert cost == pytest.approx(3 * 3 / (len(TEXTS[1]) - 1))


def test_with_an_end_mark_a_document_is_predicted_from_its_first_token_to_its_end(tmp_path):
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    words = [
        "[PAD]",
        "[UNK]",
        "[EOS]",
        "[NL]",
        "[SP]",
        *letters,
        *("##" + letter for letter in letters),
        *"天地玄黄，。",
    ]
    path = checkpoint(tmp_path, words)
    text = "天地玄黄，\n天地。"
    loaded = hanmo.load(path)
    assert isinstance(loaded.tokenizer, Lossless)
    ids = [2, *loaded.tokenizer.encode(text).ids, 2]
    with torch.no_grad():
        logs = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    spent = -sum(logs[place, id].item() for place, id in enumerate(ids[1:]))
    found = measure_quality(Subject(path), write_texts(tmp_path, [text]))
    assert (found["tokens"], found["characters"]) == (len(text) + 1, len(text))
    assert found["rows"][0]["bits_per_character"] == pytest.approx(spent / math.log(2) / len(text), abs=1e-4)


def test_quality_says_what_it_cannot_measure(small, tmp_path):
    path = write_texts(tmp_path, TEXTS)
    with pytest.raises(ConfigError, match="device is 'cuda'; quality is measured on the CPU engine"):
        measure_quality(Subject(small, weights="float32", device="cuda"), path)
    for name, mask in (("t5_1.1", None), ("bert", "prefix")):
        with pytest.raises(CheckpointError, match=r"need a causal model, which this .* is not"):
            measure_quality(Subject(GOLDENS / name, mask=mask), path)
    with pytest.raises(MissingFile, match=r"there is no vocabulary beside .*gpt2_ml"):
        measure_quality(Subject(GOLDENS / "gpt2_ml"), path)
    with pytest.raises(DataError, match="holds no document of two tokens, of 2; the first is not predicted"):
        measure_quality(Subject(small), write_texts(tmp_path, ["今", "天"]))


def test_a_picture_is_drawn_of_what_was_measured(measured, tmp_path):
    draw(measured, tmp_path / "speed.png")
    data = (tmp_path / "speed.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 10_000
    draw({**measured, "model": {**measured["model"], "answers": True}}, tmp_path / "one.svg")
    assert "<svg" in (tmp_path / "one.svg").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "speed.png"]


def test_a_picture_of_another_form_or_without_matplotlib_is_refused(measured, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"the picture is 'speed\.gif'; expected a name that ends in \.png or \.svg"):
        draw(measured, tmp_path / "speed.gif")
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"matplotlib, which is not installed; pip install 'hanmo\[plots\]'"):
        draw(measured, tmp_path / "speed.png")
