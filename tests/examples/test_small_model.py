"""The small model's data scripts on a tiny corpus."""

import importlib.util
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from hanmo.tokenizers import Lossless
from hanmo.training.data.pack import TokenEncoder
from hanmo.training.data.packed import PackedData, PackedFile

ROOT = Path(__file__).resolve().parents[2]


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # processes that split and join look the functions up by name
    spec.loader.exec_module(module)
    return module


PREPARE, PARCEL = load("examples/small_model/prepare.py"), load("examples/small_model/parcel.py")
POEMS = ["《静夜思》李白\n床前明月光，疑是地上霜。", "《江雪》柳宗元\n千山鸟飞绝，万径人踪灭。"]


def write(path: Path, source: str, texts: list[str]) -> None:
    lines = "".join(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n" for text in texts)
    path.write_bytes(lzma.compress(lines.encode()))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("out")
    write(corpus / "train-poetry.jsonl.xz", "poetry", POEMS)
    write(corpus / "train-classical-literary-1.jsonl.xz", "classical-literary", ["《左传》隐公\n郑伯克段于鄢。"])
    write(corpus / "train-classical-literary-2.jsonl.xz", "classical-literary", ["《国语》周语\n防民之口，甚于防川。"])
    write(
        corpus / "train-pdauthors.jsonl.xz", "pdauthors", ["《故乡》鲁迅\n我冒了严寒。", "《乌篷船》周作人\n子荣君。"]
    )
    write(corpus / "valid-poetry.jsonl.xz", "poetry", ["《登鹳雀楼》王之涣\n白日依山尽。"])
    write(corpus / "valid-pdauthors.jsonl.xz", "pdauthors", ["《药》鲁迅\n秋天的后半夜。", "《苦雨》周作人\n伏园兄。"])
    PREPARE.prepare(corpus, out, processes=1, size=4100, pieces=0)
    return out


def test_every_source_is_packed_but_not_zhou_zuoren(prepared: Path) -> None:
    tokenizer = Lossless(prepared / "vocab.txt")
    train = PackedFile(prepared / "train", vocabulary_sha256=TokenEncoder(tokenizer).sha256)
    text = tokenizer.decode(train.ids)
    assert {name: counts["documents"] for name, counts in train.facts["sources"].items()} == {
        "pdauthors": 1,
        "poetry": 2,
        "classical-literary": 2,
    }
    assert "严寒" in text and "防川" in text
    assert "周作人" not in text and "子荣" not in text


def test_the_held_out_texts_of_zhou_zuoren_are_apart(prepared: Path) -> None:
    tokenizer = Lossless(prepared / "vocab.txt")
    assert tokenizer.decode(PackedFile(prepared / "valid-pdauthors").ids) == "《药》鲁迅\n秋天的后半夜。"
    assert PackedFile(prepared / "valid-zhouzuoren").facts["documents"] == 1


def test_the_report_gives_the_weights_that_the_reader_takes(prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_text("utf-8"))
    data = PackedData(PackedFile(prepared / "train"), window=16, rows=2, weights=report["epochs"])
    assert report["epochs"].keys() == {"pdauthors", "poetry", "classical-literary"}
    assert report["coverage"] >= 0.999
    expected = sum(report["train"]["sources"][name]["tokens"] * epochs for name, epochs in report["epochs"].items())
    assert data.tokens(0) == expected


def test_marks_stand_before_documents_of_their_source(prepared: Path) -> None:
    tokenizer = Lossless(prepared / "vocab.txt")
    data = PackedData(PackedFile(prepared / "train"), window=64, rows=1, weights={"pdauthors": 0}, mark_share=1)
    text = "".join(tokenizer.decode(data.batch(0, step)[0][1:]) for step in range(data.steps(0)))
    assert text.count("【诗】《") == 2 and text.count("【古文】《") == 2


@pytest.mark.parametrize("limit", [1 << 10, 1 << 20])
def test_a_folder_is_split_and_joined_to_the_same_bytes(
    prepared: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PARCEL, "PIECE", 500)
    monkeypatch.setattr(PARCEL, "ProcessPoolExecutor", Here)
    PARCEL.split(prepared, tmp_path / "parts", limit)
    folders = sorted((tmp_path / "parts").iterdir())
    assert len(folders) == 1 if limit > 1 << 14 else len(folders) > 1
    for folder in folders:
        assert sum(path.stat().st_size for path in folder.glob("*.xz")) <= limit
    PARCEL.join(tmp_path / "joined", folders)
    assert {path.name: path.read_bytes() for path in (tmp_path / "joined").iterdir()} == {
        path.name: path.read_bytes() for path in prepared.iterdir()
    }
    if len(folders) > 1:
        with pytest.raises(SystemExit, match="pieces are missing, first"):
            PARCEL.join(tmp_path / "again", folders[1:])


def test_a_damaged_part_is_named(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARCEL, "ProcessPoolExecutor", Here)
    PARCEL.split(prepared, tmp_path / "parts", 1 << 20)
    contents = tmp_path / "parts" / "1" / "contents.json"
    facts = json.loads(contents.read_text())
    facts["vocab.txt"]["sha256"] = "0" * 64
    contents.write_text(json.dumps(facts))
    with pytest.raises(SystemExit, match=r"vocab\.txt has SHA256 [0-9a-f]{64}, expected 0000"):
        PARCEL.join(tmp_path / "joined", [tmp_path / "parts"])
    with pytest.raises(SystemExit, match=r"no contents\.json in"):
        PARCEL.join(tmp_path / "joined", [tmp_path / "nothing"])


class Here:
    """Work in this process, in place of a pool."""

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work, items):
        return map(work, items)


@pytest.mark.slow
def test_the_encoder_trains_from_the_corpus_to_a_card(prepared: Path, tmp_path: Path) -> None:
    corpus, data, out = tmp_path / "corpus", tmp_path / "data", tmp_path / "out"
    corpus.mkdir()
    for kind in ("train", "valid"):
        write(corpus / f"{kind}-novels.jsonl.xz", "novels", ["他走进屋子。天色已晚，灯还没有点上。" * 20])
        write(corpus / f"{kind}-pdauthors.jsonl.xz", "pdauthors", ["《乌篷船》周作人\n子荣君。"])
    command = [sys.executable, "examples/small_model/train_encoder.py"]
    size = ["--num-layers", "1", "--hidden-size", "64", "--rows", "2", "--window", "32"]
    for words in (
        ["pack", data, corpus, "--vocabulary", prepared / "vocab.txt"],
        ["train", data, out, "--minutes", "0.05", "--device", "cpu", *size],
    ):
        subprocess.run([*command, *map(str, words)], cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert PackedFile(data / "train").facts["documents"] == 1
    (best,) = out.glob("best-*")
    words = ["ship", data, best, "--to", tmp_path / "shipped", "--batches", "1"]
    subprocess.run([*command, *map(str, words)], cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert "held-out windows" in (tmp_path / "shipped" / "MODEL_CARD.md").read_text("utf-8")
