import errno
import json
import os
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hanmo.errors import DataError, MissingFile
from hanmo.tokenizers import Lossless, WordPiece
from hanmo.training.data.documents import Part
from hanmo.training.data.pack import TokenEncoder, pack, pack_documents
from hanmo.training.data.packed import PackedData, PackedFile

ALPHABET = string.ascii_letters + string.digits
TOKENIZER = Lossless(
    [
        *("[PAD]", "[UNK]", "[EOS]", "[NL]", "[SP]"),
        *ALPHABET,
        *("##" + letter for letter in ALPHABET),
        *"天地玄黄宇宙洪荒诗文【】《》，。",
    ]
)
ENCODER = TokenEncoder(TOKENIZER)
END, STOP = TOKENIZER.special.end, TOKENIZER.token_to_id("。")
POEM = "《天》地\n玄黄，宇宙。\n洪荒。"


def packed(folder: Path, parts: list[Part], **options) -> PackedFile:
    options = {"processes": 1, **options}
    pack_documents(parts, folder / "d", encoder=ENCODER, **options)
    return PackedFile(folder / "d")


def many(count: int = 60) -> list[Part]:
    """Make documents of many lengths, each known by the number it begins with."""
    return [Part(f"{n}" + "天地玄黄，宇宙洪荒。" * (n % 7), "poetry" if n % 3 else "prose") for n in range(count)]


def count_predicted(data: PackedData, epoch: int = 0) -> list[int]:
    """Return all ids that an epoch predicts, by row in the order of the file; needs shuffle=False."""
    rows = np.concatenate([data.batch(epoch, step) for step in range(data.steps(epoch))])
    return [int(number) for row in rows for number in row[1:] if number]


def documents_of(ids: list[int]) -> list[str]:
    return "".join("|" if number == END else TOKENIZER.decode([number]) for number in ids).split("|")[:-1]


# Packing


def test_packed_documents_decode_to_their_texts_in_order(tmp_path: Path) -> None:
    parts = many()
    file = packed(tmp_path, parts)
    texts = [TOKENIZER.decode(file.ids[row["start"] : row["start"] + row["tokens"]]) for row in file.documents]
    assert texts == [part.text for part in parts]
    assert all(file.ids[row["start"] + row["tokens"] - 1] == END for row in file.documents)
    assert [file.sources[row["source"]] for row in file.documents] == [part.source for part in parts]


def test_the_counts_are_those_of_the_texts(tmp_path: Path) -> None:
    file = packed(tmp_path, [Part("天鱻龘", "a"), Part("地鱻", "b"), Part("玄", "a")])
    assert file.facts["characters"] == 6
    assert file.facts["tokens"] == 6 + 3
    assert file.facts["unknown"] == 3
    assert file.facts["distinct_unknown"] == 2
    assert file.facts["sources"] == {
        "a": {"documents": 2, "tokens": 6, "characters": 4, "unknown": 2},
        "b": {"documents": 1, "tokens": 3, "characters": 2, "unknown": 1},
    }
    assert file.documents["characters"].tolist() == [3, 2, 1]


def test_many_processes_give_the_same_bytes_as_one(tmp_path: Path) -> None:
    parts = [Part("天地玄黄，" * 70_000 + str(n), "s") for n in range(8)]
    for processes in (1, 2):
        pack_documents(parts, tmp_path / f"p{processes}", encoder=ENCODER, processes=processes)
    for suffix in ("bin", "documents", "json"):
        assert (tmp_path / f"p1.{suffix}").read_bytes() == (tmp_path / f"p2.{suffix}").read_bytes()


def test_a_document_in_parts_is_one_document(tmp_path: Path) -> None:
    whole = packed(tmp_path, [Part("天地玄黄"), Part("宇宙")])
    ids, rows = whole.ids.copy(), whole.documents.copy()
    parts = packed(tmp_path, [Part("天", ends=False), Part("地玄", ends=False), Part("黄"), Part("宇宙")])
    assert parts.ids.tolist() == ids.tolist()
    assert parts.documents.tolist() == rows.tolist()


def test_a_document_far_longer_than_a_batch_is_encoded_as_if_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanmo.training.data.pack._BATCH", 50)
    text = "《天》\n" + "天地 玄黄，word 宇宙 ab cd。" * 40
    file = packed(tmp_path, [Part(text)], titles=True)
    assert file.ids[1:-1].tolist() == ENCODER.encode(text).tolist()
    assert file.documents[["tokens", "characters", "title"]].tolist() == [(len(file.ids) - 1, len(text), 4)]


def test_files_are_packed_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "一.txt").write_bytes("天地\n玄黄".encode("gb18030"))
    (tmp_path / "二.jsonl").write_text('{"text": "宇宙", "source": "s"}\n', "utf-8")
    report = pack([tmp_path], tmp_path / "out" / "d", encoder=ENCODER, processes=1)
    assert report.documents == 2
    file = PackedFile(tmp_path / "out" / "d", vocabulary_sha256=ENCODER.sha256)
    assert TOKENIZER.decode(file.ids) == "天地\n玄黄宇宙"
    assert file.sources == ["一", "s"]


def test_a_vocabulary_above_65536_tokens_is_packed_in_32_bits(tmp_path: Path) -> None:
    tokens = [TOKENIZER.id_to_token(number) for number in range(TOKENIZER.vocab_size)]
    large = Lossless([*tokens, *(chr(0x20000 + n) for n in range(65_500)), "凹"])
    pack_documents([Part("天凹")], tmp_path / "d", encoder=TokenEncoder(large), processes=1)
    file = PackedFile(tmp_path / "d")
    assert file.ids.dtype == np.uint32
    assert large.decode(file.ids) == "天凹"


def test_nothing_to_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there was no document to pack"):
        packed(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_document_that_never_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the last document of source 'novel' never ended"):
        packed(tmp_path, [Part("天", "novel", ends=False)])


def test_a_full_disk_is_said_and_leaves_the_old_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path, [Part("天地")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hanmo.training.data.pack.os.fsync", full)
    with pytest.raises(DataError, match=r"no space is left while writing .*d\.bin; nothing was replaced"):
        packed(tmp_path, [Part("玄黄")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Reading


def test_packed_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = packed(tmp_path, many())
    with pytest.raises(DataError, match=f"packed with vocabulary {ENCODER.sha256[:12]}, the model has abcabcabcabc"):
        PackedFile(tmp_path / "d", vocabulary_sha256="abc" * 20)
    size = (tmp_path / "d.bin").stat().st_size
    with (tmp_path / "d.bin").open("ab") as more:
        more.write(b"xx")
    with pytest.raises(DataError, match=rf"d\.bin has {size + 2} bytes, expected {size}"):
        PackedFile(tmp_path / "d")
    (tmp_path / "d.json").write_text(json.dumps({**file.facts, "format": "other"}))
    with pytest.raises(DataError, match=r"d\.json has format 'other'"):
        PackedFile(tmp_path / "d")
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(DataError, match=r"d\.json is not JSON: .*; pack the data again"):
        PackedFile(tmp_path / "d")
    (tmp_path / "d.documents").unlink()
    with pytest.raises(MissingFile, match=r"d\.documents is not there"):
        PackedFile(tmp_path / "d")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"}, {"dtype": 5}, {"tokens": -1}, {"tokens": 1 << 63}, {"tokens": "9"}, {"end": 1 << 40},
        {"marks": [1]}, {"marks": {"a": [0, 1 << 50]}}, {"marks": {"a": ["0", 1]}}, {"sources": 5},
        {"vocabulary_size": None}, {"vocabulary_sha256": 5}, {"unknown": -1}, {"documents": 0}, {"sources": {}},
    ],
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    file = packed(tmp_path, many())
    (tmp_path / "d.json").write_text(json.dumps({**file.facts, **change}))
    with pytest.raises(DataError, match=r"; pack the data again$"):
        PackedFile(tmp_path / "d")


@pytest.mark.parametrize("name", ["end", "marks", "sources", "unknown"])
def test_facts_that_lack_one_are_refused(tmp_path: Path, name: str) -> None:
    file = packed(tmp_path, many())
    (tmp_path / "d.json").write_text(json.dumps({key: value for key, value in file.facts.items() if key != name}))
    with pytest.raises(DataError, match="lacks a fact of packed data"):
        PackedFile(tmp_path / "d")


@pytest.mark.parametrize("field", ["start", "tokens", "characters", "title", "source"])
@pytest.mark.parametrize("number", [-1, 1 << 31])
def test_documents_outside_of_the_file_are_refused(tmp_path: Path, field: str, number: int) -> None:
    file = packed(tmp_path, many())
    rows = np.array(file.documents)
    rows[field][7] = np.int64(number).astype(rows[field].dtype)
    (tmp_path / "d.documents").write_bytes(rows.tobytes())
    if (field, number) == ("characters", 1 << 31):  # any number of characters may become few tokens
        assert PackedFile(tmp_path / "d").documents["characters"][7] == number
        return
    with pytest.raises(DataError, match=r"d\.documents says of document 7 what cannot be: .*; pack the data again"):
        PackedFile(tmp_path / "d")


def test_an_id_outside_of_the_vocabulary_is_refused(tmp_path: Path) -> None:
    file = packed(tmp_path, many())
    ids = np.array(file.ids)
    ids[9] = 65535
    (tmp_path / "d.bin").write_bytes(ids.tobytes())
    with pytest.raises(DataError, match=r"d holds the id 65535, the vocabulary \d+ words; pack the data again"):
        PackedData(PackedFile(tmp_path / "d"), window=1000, rows=4, shuffle=False).batch(0, 0)


@pytest.mark.parametrize("window", [1, 5, 16, 1000])
def test_a_stream_predicts_every_id_once_in_order(tmp_path: Path, window: int) -> None:
    parts = many()
    data = PackedData(packed(tmp_path, parts), window=window, rows=4, shuffle=False)
    assert documents_of(count_predicted(data)) == [part.text for part in parts]
    assert data.tokens(0) == data.file.facts["tokens"]
    assert data.batch(0, 0).shape == (4, window + 1)
    assert data.batch(0, 0)[0, 0] == END


@pytest.mark.parametrize("layout", ["stream", "document"])
def test_shuffling_keeps_every_document_whole_and_changes_with_the_epoch(tmp_path: Path, layout: str) -> None:
    data = PackedData(packed(tmp_path, many()), window=8, rows=4, seed=3, layout=layout)
    counts = Counter(data.file.ids[1:].tolist())
    for epoch in (0, 1):
        assert Counter(count_predicted(data, epoch)) == counts
    assert data.batch(0, 0).tolist() != data.batch(1, 0).tolist()


def test_batches_are_fixed_by_seed_epoch_and_step_and_go_on_from_any_step(tmp_path: Path) -> None:
    file = packed(tmp_path, many())
    options = {"window": 8, "rows": 3, "weights": {"prose": 0.5}, "bare_share": 0.3}
    stream = PackedData(file, seed=5, **options).batches()
    first = [(epoch, step, ids.tolist()) for (epoch, step, ids), _ in zip(stream, range(90), strict=False)]
    assert first[-1][0] >= 1  # the epochs follow each other
    epoch, step, ids = first[71]
    again = PackedData(file, seed=5, **options)
    assert next(again.batches(epoch, step))[2].tolist() == ids
    assert again.batch(*first[3][:2]).tolist() == first[3][2]
    assert PackedData(file, seed=6, **options).batch(epoch, step).tolist() != ids


def test_weights_repeat_documents_evenly_over_the_epochs(tmp_path: Path) -> None:
    parts = [Part(f"{n}天地", "a" if n % 2 else "b") for n in range(40)]
    data = PackedData(packed(tmp_path, parts), window=7, rows=2, weights={"a": 2.5, "b": 0.25}, shuffle=False)
    read = [Counter(documents_of(count_predicted(data, epoch))) for epoch in range(4)]
    for part in parts:
        times = [counts[part.text] for counts in read]
        assert sum(times) == (10 if part.source == "a" else 1)
        assert max(times) - min(times) <= 1


def test_a_source_of_weight_zero_is_left_out(tmp_path: Path) -> None:
    data = PackedData(packed(tmp_path, many()), window=9, rows=2, weights={"prose": 0}, shuffle=False)
    assert documents_of(count_predicted(data)) == [part.text for part in many() if part.source == "poetry"]


def test_marks_and_title_lines_come_and_go(tmp_path: Path) -> None:
    parts = [Part(POEM, "poetry"), Part("玄黄。", "prose")] * 200
    file = packed(tmp_path, parts, marks={"poetry": "【诗】"}, titles=True)
    data = PackedData(file, window=32, rows=8, mark_share=0.5, bare_share=0.25, shuffle=False)
    read = Counter(documents_of(count_predicted(data)))
    body = POEM.split("\n", 1)[1]
    assert set(read) == {POEM, body, "【诗】" + POEM, "【诗】" + body, "玄黄。"}
    assert read["玄黄。"] == 200
    assert 70 < read["【诗】" + POEM] + read["【诗】" + body] < 130
    assert 25 < read[body] + read["【诗】" + body] < 75


def test_special_tokens_written_in_a_document_are_plain_characters(tmp_path: Path) -> None:
    data = packed(tmp_path, [Part("天[EOS]地[PAD]玄", "x")])
    assert [number for number in data.ids if number in (0, END)] == [END, END]


def test_marks_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    file = packed(tmp_path, [Part(POEM, "poetry")], marks={"poetry": "【诗】"}, titles=True)
    assert documents_of(count_predicted(PackedData(file, window=6, rows=1, shuffle=False))) == [POEM]


@pytest.mark.parametrize("window", [4, 12, 500])
def test_windows_of_one_document_predict_every_id_once(tmp_path: Path, window: int) -> None:
    parts = many()
    data = PackedData(
        packed(tmp_path, parts), window=window, rows=4, layout="document", sentence_ends=(STOP,), shuffle=False
    )
    assert documents_of(count_predicted(data)) == [part.text for part in parts]
    for step in range(data.steps(0)):
        for row in data.batch(0, step):
            assert (row[1:] == END).sum() <= 1  # no window holds two documents
            assert not row[len(row) - np.argmax(row[::-1] != 0) :].any()  # padded at its end alone


def test_windows_of_one_document_are_cut_at_sentence_ends(tmp_path: Path) -> None:
    file = packed(tmp_path, [Part("天地玄黄，宇宙洪荒。" * 9)])
    data = PackedData(file, window=17, rows=1, layout="document", sentence_ends=(STOP,), shuffle=False)
    rows = [data.batch(0, step)[0] for step in range(data.steps(0))]
    assert len(rows) == 9
    for row in rows[:-1]:
        assert row[row > 0][-1] == STOP


def test_a_stride_reads_the_context_again(tmp_path: Path) -> None:
    file = packed(tmp_path, [Part("天地玄黄宇宙洪荒" * 4)])
    data = PackedData(file, window=8, rows=1, layout="document", stride=4, shuffle=False)
    rows = [TOKENIZER.decode(data.batch(0, step)[0]) for step in range(data.steps(0))]
    assert rows[:3] == ["天地玄黄宇宙洪荒", "黄宇宙洪荒天地玄黄", "荒天地玄黄宇宙洪荒"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0, expected 1 or more"),
        ({"rows": -1}, "rows is -1, expected 1 or more"),
        ({"stride": -2}, "stride is -2, expected 1 or more"),
        ({"mark_share": 1.5}, "mark_share is 1.5, expected 0 to 1"),
        ({"bare_share": -0.1}, "bare_share is -0.1, expected 0 to 1"),
        ({"layout": "page"}, "layout is 'page', expected 'stream' or 'document'"),
        ({"weights": {"law": 1.0}}, "holds no source 'law', only prose, poetry"),
        ({"weights": {"prose": -1.0}}, "the weight of prose is -1.0, expected 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    file = packed(tmp_path, many())
    with pytest.raises(DataError, match=message):
        PackedData(file, **{"window": 8, "rows": 2, **options})


def test_an_epoch_of_nothing_and_a_step_beyond_the_end_are_refused(tmp_path: Path) -> None:
    file = packed(tmp_path, many())
    with pytest.raises(DataError, match=r"epoch 0 of .* holds no document"):
        PackedData(file, window=8, rows=2, weights={"prose": 0, "poetry": 0}).steps(0)
    data = PackedData(file, window=8, rows=2)
    last = data.steps(0)
    with pytest.raises(DataError, match=f"epoch 0 has steps 0 to {last - 1}, asked for {last}"):
        data.batch(0, last)


def test_a_document_in_any_vocabulary_has_no_mark_unless_asked_for(tmp_path: Path) -> None:
    bert = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄黄"])
    for separator, expected in ((None, [5, 6, 7]), ("[SEP]", [3, 5, 6, 3, 7, 3])):
        encoder = TokenEncoder(bert, separator=separator)
        pack_documents([Part("天地"), Part("玄")], tmp_path / "d", encoder=encoder, processes=1)
        assert PackedFile(tmp_path / "d").ids.tolist() == expected


def test_processes_start_only_where_there_is_enough_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_start(*_: object) -> None:
        raise AssertionError("a process was started for a handful of documents")

    monkeypatch.setattr("hanmo.training.data.pack.ProcessPoolExecutor", none_start)
    assert pack_documents(many(), tmp_path / "d", encoder=ENCODER).documents == 60


class Dying(TokenEncoder):
    def encode(self, text: str) -> np.ndarray:
        os._exit(9)


def test_a_process_that_is_ended_from_outside_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one of 2 processes that encode was ended from outside"):
        pack_documents([Part("天")], tmp_path / "d", encoder=Dying(TOKENIZER), processes=2)
    assert list(tmp_path.iterdir()) == []


def test_sources_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.training.data.pack._SOURCES", 3)
    with pytest.raises(DataError, match="there are more than 3 sources, the last 'http://3'"):
        packed(tmp_path, [Part("天", f"http://{number}") for number in range(9)])


def test_other_faults_of_the_disk_are_not_taken_for_want_of_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("hanmo.training.data.pack.os.fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        packed(tmp_path, [Part("天")])
    assert list(tmp_path.iterdir()) == []
