"""The training examples on a handful of texts: a tiny random model learns them by heart."""

import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

import hanmo

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [
    ("床前明月光疑是地上霜", "静夜思"),
    ("千山鸟飞绝万径人踪灭", "江雪"),
    ("白日依山尽黄河入海流", "登鹳雀楼"),
    ("春眠不觉晓处处闻啼鸟", "春晓"),
]
CHARACTERS = sorted({character for pair in PAIRS for text in pair for character in text})
FILLING = [chr(code) for code in range(0x8000, 0x8000 + 115)]


def example(name: str) -> Callable[[list[str]], None]:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def checkpoint(data: Path, folder: Path, golden: str) -> Path:
    folder.mkdir()
    for path in (data / "goldens" / golden).glob("model.ckpt*"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(data / "goldens" / golden / "config.json", folder / "config.json")
    return folder


@pytest.fixture
def bert(data: Path, tmp_path: Path) -> Path:
    folder = checkpoint(data, tmp_path / "bert", "bert")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *FILLING][:120]
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tokens), "utf-8")
    return folder


@pytest.fixture
def t5(data: Path, tmp_path: Path) -> Path:
    folder = checkpoint(data, tmp_path / "t5", "t5_1.1")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(CHARACTERS), "".join(FILLING)[: 116 - len(CHARACTERS)]]), model_writer=model,
        vocab_size=120, model_type="char", character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


@pytest.mark.parametrize("name", ["unilm_titles", "t5_titles"])
def test_titles_are_learnt_and_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name.split("_")[0].replace("unilm", "bert"))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in PAIRS), "utf-8")
    texts = [argument for source, _ in PAIRS for argument in ("--text", source)]
    sizes = ["--steps", "120", "--rows", "4", "--lr", "5e-3", "--limit", "24", "--title-limit", "8"]
    example(name)(["--model", str(model), "--data", str(pairs), "--out", str(tmp_path / "out"), *sizes, *texts])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 pairs, of which 0 were cut"
    assert lines[-4:] == [title for _, title in PAIRS]
    best = next((tmp_path / "out").glob("best-*"))
    again = hanmo.load(best, mask="prefix" if name == "unilm_titles" else None)
    assert again.write(PAIRS[1][0], beams=1, stop=None, max_tokens=8) == [PAIRS[1][1]]


def test_masks_are_learnt_and_filled(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poems = PAIRS[0][0] + PAIRS[3][0]
    (tmp_path / "texts.txt").write_text(poems + "\n", "utf-8")
    sizes = ["--steps", "200", "--rows", "4", "--lr", "5e-3", "--limit", "24"]
    arguments = ["--model", str(bert), "--data", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out"), *sizes]
    example("mlm")([*arguments, "--text", poems.replace("月", "[MASK]").replace("眠", "[MASK]")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 documents, 20 tokens, 0 of them unknown"
    assert [line.split()[1] for line in lines[-2:]] == ["月", "眠"]
    assert [len(line.split()) for line in lines[-2:]] == [11, 11]


def test_every_training_example_is_short() -> None:
    for name in ("unilm_titles", "t5_titles", "mlm"):
        assert len((ROOT / "examples" / f"{name}.py").read_text("utf-8").splitlines()) <= 80
