import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from hanmo.errors import DataError, MissingFile
from hanmo.training.data.documents import Part, find_files, read_documents


def texts(*paths: Path, **options: str) -> list[str]:
    return [part.text for part in read_documents(paths, **options)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_both_encodings_are_recognised(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(("Only ASCII at first.\n" * 3 + "床前明月光，疑是地上霜。").encode(encoding))
    assert texts(tmp_path / "a.txt") == ["Only ASCII at first.\n" * 3 + "床前明月光，疑是地上霜。"]


def test_an_encoding_is_recognised_after_megabytes_of_ascii(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a b\n" * 700_000 + "明月".encode("gb18030"))
    assert "".join(texts(tmp_path / "a.txt")) == "a b\n" * 700_000 + "明月"


@pytest.mark.parametrize(
    ("document", "expected"),
    [("file", ["一\n二\n\n三"]), ("line", ["一", "二", "三"]), ("paragraph", ["一\n二", "三"])],
)
def test_a_text_file_is_one_document_or_its_lines_or_paragraphs(
    tmp_path: Path, document: str, expected: list[str]
) -> None:
    (tmp_path / "a.txt").write_text("一\r\n二\n\n三\n", "utf-8", newline="")
    assert texts(tmp_path / "a.txt", document=document) == expected


@pytest.mark.parametrize("document", ["file", "line"])
def test_a_long_document_comes_in_bounded_parts_that_join_to_itself(tmp_path: Path, document: str) -> None:
    long = "天地玄黄 word，" * 600_000
    (tmp_path / "a.txt").write_text("短\n" + long + "\n尾", "utf-8")
    parts = list(read_documents([tmp_path / "a.txt"], document=document))
    assert max(len(part.text) for part in parts) <= 3 << 20
    assert len(parts) > 3
    documents = "".join(part.text + "|" * part.ends for part in parts).split("|")[:-1]
    assert documents == (["短\n" + long + "\n尾"] if document == "file" else ["短", long, "尾"])


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".xz", lzma.open), (".gz", gzip.open), (".bz2", bz2.open)])
def test_json_lines_are_read_packed_or_not(tmp_path: Path, suffix: str, opener) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    with opener(path, "wb") as file:
        file.write('{"text": "天\\n地", "source": "诗"}\n\n{"text": ""}\n{"text": "玄\u2028黄"}\n'.encode())
    assert list(read_documents([path])) == [Part("天\n地", "诗"), Part("玄\u2028黄", "a")]


def test_a_source_that_is_null_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "天", "source": null}\n', "utf-8")
    assert list(read_documents([tmp_path / "a.jsonl"])) == [Part("天", "a")]


def test_a_cut_never_parts_a_word_or_what_a_space_between_words_implies() -> None:
    text = "天地 ab café 玄黄"
    for size in range(1, len(text)):
        parts = list(Part(text).pieces(size))
        assert "".join(part.text for part in parts) == text
        assert all(part.text[0] in "天地玄黄" for part in parts[1:] if size > 8)


def test_progress_tells_the_bytes_read_of_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("天地玄黄，天地玄黄\n" * 100_000, "utf-8")
    told: list[tuple[int, int]] = []
    list(read_documents([tmp_path], document="line", progress=lambda done, total: told.append((done, total))))
    done = [first for first, _ in told]
    assert {total for _, total in told} == {5_600_000}
    assert done == sorted(done) and len(done) >= 2 and 2_700_000 < done[-1] <= 5_600_000


def test_csv_cells_keep_their_lines_and_may_be_long(tmp_path: Path) -> None:
    long = "天" * 200_000
    (tmp_path / "a.csv").write_text(f'title,text,source\nx,"一\n二，""三""",诗\ny,{long},\n', "utf-8", newline="")
    assert list(read_documents([tmp_path / "a.csv"])) == [Part('一\n二，"三"', "诗"), Part(long, "a")]


def test_folders_are_walked_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.txt", "a.txt", "b/1.txt", "picture.png"):
        (tmp_path / name).write_text(name)
    assert [path.relative_to(tmp_path).as_posix() for path in find_files([tmp_path])] == ["a.txt", "b/1.txt", "b/2.txt"]


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(MissingFile, match=r"gone\.txt is not there"):
        find_files([tmp_path / "gone.txt"])
    with pytest.raises(DataError, match="empty holds no data file"):
        find_files([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"a\.pdf ends in '\.pdf'"):
        find_files([tmp_path / "a.pdf"])
    with pytest.raises(DataError, match="document is 'page', expected one of file, line, paragraph"):
        texts(tmp_path, document="page")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt holds no text"),
        ("a.jsonl", b"\n\n", r"a\.jsonl holds no text"),
        ("a.txt", b"abc\0def", r"a\.txt is binary: byte 3 is 0"),
        ("a.txt", b"ok\n\xff\xff\xff\xff\xff\xff\n", r"a\.txt is neither UTF-8 nor GB18030 near line 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", b'{"body": "a"}\n', r"a\.jsonl line 1 has no text in 'text': it holds keys \['body'\]"),
        ("a.txt", "天地".encode("utf-16"), r"a\.txt begins as UTF-16 does \(ff fe\); save it as UTF-8"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl line 1 is not JSON"),
        ("a.jsonl", b"1" * 5000, r"a\.jsonl line 1 is not JSON \(Exceeds the limit"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "a\\ud83d"}\n',
            r"a\.jsonl line 2 holds the lone surrogate \\ud83d in 'text'",
        ),
        ("a.jsonl", b"[1]\n", r"a\.jsonl line 1 has no text in 'text': it holds a list"),
        ("a.csv", b"body,x\n1,2\n", r"a\.csv line 1 has 2 columns, \['body', 'x'\], and not 'text' among them"),
        ("a.csv", b"x,text\n1,2\n1\n", r"a\.csv line 3 has 1 columns, expected 2; mend the row"),
        ("a.csv", b'text\n"a" b\n', r"a\.csv line 2 is not a csv row"),
        ("a.txt.xz", lzma.compress(b"abc" * 1000)[:-20], r"a\.txt\.xz cannot be unpacked"),
        ("a.txt.gz", b"not gzip", r"a\.txt\.gz cannot be unpacked"),
    ],
)
def test_bad_data_is_named_with_its_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_data_that_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    for name in ("a.txt", "b.jsonl"):
        with pytest.raises(DataError, match="is a folder, a FIFO or a device; expected a regular file"):
            texts(tmp_path / name)


def test_an_archive_cut_short_late_is_named(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": str(number) * 50}) + "\n" for number in range(80_000)).encode()
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines, preset=0)[:-2000])
    with pytest.raises(DataError, match=r"a\.jsonl\.xz cannot be unpacked"):
        texts(tmp_path / "a.jsonl.xz")


def test_bytes_that_break_the_encoding_late_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("天地\n".encode() * 600_000 + b"ab\xff\xfe\n")
    with pytest.raises(DataError, match=r"a\.txt line 600001: bytes ff fe 0a are not utf-8"):
        texts(tmp_path / "a.txt")


def test_a_file_that_ends_inside_a_character_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("天地".encode()[:-1])
    with pytest.raises(DataError, match=r"a\.txt line 1: bytes e5 9c are not utf-8"):
        texts(tmp_path / "a.txt")
