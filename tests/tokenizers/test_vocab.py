"""vocab.txt: what is read, what is refused."""

import os
import re

import pytest

from hanmo.errors import MissingFile, TokenizerError
from hanmo.tokenizers.vocab import read_vocab, write_vocab


def write(tmp_path, data):
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("last", [b"", b"\n"])
def test_lines_end_at_newline_only(tmp_path, last):
    path = write(tmp_path, "[PAD]\n\u2028\na\x0bb\n##\x85\n中 12".encode() + last)
    assert read_vocab(path) == ["[PAD]", "\u2028", "a", "##", "中"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xef\xbb\xbf[PAD]\na\n", "begins with a byte order mark (EF BB BF)"),
        (b"[PAD]\r\na\r\n", "has Windows line ends ('\\r\\n', first at line 1)"),
        (b"[PAD]\n\na\n", "line 2 of"),
        (b"[PAD]\na\n\n", "is empty, yet would take the id 2"),
        (b"[PAD]\n \t\na\n", "is empty, yet would take the id 1"),
        (b"[PAD]\na\xff\n", "is not UTF-8 at byte 7, in line 2"),
        (b"a\n\xed\xa0\x80\n", "is not UTF-8 at byte 2, in line 2"),
        (b"", "is empty; expected one token a line"),
        (b"\n", "is empty, yet would take the id 0"),
    ],
)
def test_a_file_that_would_move_ids_is_refused(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(TokenizerError, match=re.escape(message)) as caught:
        read_vocab(path)
    assert str(path) in str(caught.value)


def test_a_vocabulary_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"no\.txt"):
        read_vocab(tmp_path / "no.txt")


def test_what_is_written_is_read_back(tmp_path):
    tokens = ["[PAD]", "中", "\u2028", "##a"]
    write_vocab(tmp_path / "v.txt", tokens)
    assert read_vocab(tmp_path / "v.txt") == tokens
    assert [path.name for path in tmp_path.iterdir()] == ["v.txt"]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["a", "b c"], "'b c' cannot be a line"),
        (["a", "a"], "holds 'a' twice, at lines 1 and 2"),
        (["a", ""], "line 2 of"),
        (["a", "x\ny"], r"'x\ny' cannot be a line"),
        (["\ud800"], r"the lone surrogate '\ud800'"),
    ],
)
def test_tokens_that_no_line_holds_are_refused(tmp_path, tokens, message):
    with pytest.raises(TokenizerError, match=re.escape(message)):
        write_vocab(tmp_path / "v.txt", tokens)
    assert list(tmp_path.iterdir()) == []


def test_the_published_vocabularies_have_their_sizes(shared):
    chinese = read_vocab(shared / "vocab" / "bert-base-chinese-vocab.txt")
    assert (len(chinese), chinese[343], chinese[511], chinese[-1]) == (21128, "\u2028", "。", "##😎")
    clue = read_vocab(shared / "vocab" / "clue-vocab.txt")
    assert (len(clue), clue[545]) == (8021, "。")


def test_writing_follows_no_link_that_lies_in_the_folder(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("vocab.txt", f".vocab.txt.{os.getpid()}"):
        (tmp_path / name).symlink_to(victim)
    write_vocab(tmp_path / "vocab.txt", ["a", "b"])
    assert victim.read_text() == "precious"
    assert not (tmp_path / "vocab.txt").is_symlink() and read_vocab(tmp_path / "vocab.txt") == ["a", "b"]
