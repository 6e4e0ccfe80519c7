"""Mutate every kind of file that Hanmo reads, read it, and count what goes wrong.

    python benchmarks/fuzz_files.py [--mutations 20000] [--seed 0] [--only KIND] [--keep FOLDER]

Mutated files are read by forked processes. Right is a result or a HanmoError. Any other exception, a signal, more than
10 s of the processor (or 60 s in all), and more than 512 MiB beyond what the process held before are counted, and shown
once for each place. Linux only. The files are tiny and made anew from tests/data; a seed makes the same mutations.
"""

import argparse
import base64
import copy
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
import torch
from crc32c import crc32c

import hanmo
from hanmo.batch.files import Run
from hanmo.batch.rows import read_rows
from hanmo.batch.work import BatchWriter
from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.safetensors import write_safetensors
from hanmo.checkpoint.tf.protobuf import encode_bytes, fields, read_varint, varint
from hanmo.checkpoint.tf.sstable import masked, read_table, write_table
from hanmo.errors import HanmoError
from hanmo.tokenizers.load import load_tokenizer
from hanmo.tokenizers.sentence_piece import jieba_words
from hanmo.training.checkpoints import read_state
from hanmo.training.data.documents import Part
from hanmo.training.data.pack import TokenEncoder, pack, pack_documents
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.log import read_log

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "data" / "goldens"
TEXTS = ["今天天气不错，我们去公园。", "the quick brown fox jumps", "春眠不觉晓，处处闻啼鸟。", "Ｆｕｌｌ ①②③ ﬁ"]
SECONDS, PATIENCE, BYTES = 10, 60, 512 << 20
TOGETHER = 50  # mutations that one process reads before the next is forked
WORDS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 31, 64, 4096, 1e308, -1e-9, 2**31, 2**40, 2**63, 10**30, 10**400),
    *("", "x", "none", [], {}, [[]], [1], [None], {"a": 1}, "1", "\ud800", "\0", 0.5, 1e-400, float("nan")),
    *(float("inf"), -5, "../x", "/dev/zero", "gelu", "bert", "t5", "x" * 5000, 2**20),
)
RAW = (b"", b"[]", b"{}", b"null", b"1", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{\0", b'"\\ud800"', b"9" * 5000)
ODD_BYTES = b'\0\x01\x7f\x80\xff\xfe-"[{]},:90\n'

_TOKEN = {"special": True, "single_word": True, "lstrip": True, "rstrip": True, "normalized": True}
_A, _Z = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "Z", "type_id": 0}}


def _split(pattern: dict[str, str], behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": behavior == "Removed"}


def _template(single: list[Any], *ids: int) -> dict[str, Any]:
    special = {"Z": {"id": "Z", "ids": list(ids), "tokens": ["Z"]}} if ids else {}
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}


PARTS: dict[str, list[Any]] = {
    "normalizer": [
        *({"type": "Replace", "pattern": {"Regex": each}, "content": "b"} for each in ("(a|a)*$", "", "(" * 5000)),
        *({"type": "Precompiled", "precompiled_charsmap": each} for each in ("", "AAAA", "////////AAAA", "BAAAAP//")),
        *({"type": "Nmt"}, {"type": "StripAccents"}, {"type": "ByteLevel"}),
        *({"type": "Prepend", "prepend": "▁" * each} for each in (250, 100_000)),
    ],
    "pre_tokenizer": [
        *(_split({"Regex": each}) for each in ("(.*)*x", "((.?)*)*\\2x", "")), _split({"String": ""}, "Removed"),
        *({"type": "Metaspace", "replacement": each, "prepend_scheme": "always", "split": True} for each in ("ab", "")),
        *({"type": "FixedLength", "length": each} for each in (0, 2**63)), {"type": "UnicodeScripts"},
    ],
    "decoder": [
        {"type": "Strip", "content": "a", "start": 2**31, "stop": 2**63}, {"type": "Fuse"}, {"type": "ByteFallback"},
        {"type": "Strip", "content": "今", "start": 5, "stop": 5}, {"type": "BPEDecoder", "suffix": ""},
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    ],
    "post_processor": [
        *(_template([_A] * 50), _template([]), _template([_Z, _A], 4_000_000_000), _template([_Z, _A], 99_999_999)),
        *({"type": "BertProcessing", "sep": ["x", each], "cls": ["y", each]} for each in (1, 2**32 - 1)),
    ],
    "truncation": [{"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}],
    "padding": [
        {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0,
         "pad_token": "x"},
    ],
    "model": [
        {"type": "Unigram", "unk_id": 5, "vocab": []}, {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0]]},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}, {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2**32 - 1}, "merges": [["a", "b"]]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]], "continuing_subword_prefix": "今今"},
        {"type": "BPE", "dropout": -1, "vocab": {"a": 0}, "merges": []}, {"type": "WordPiece", "vocab": {"a": None}},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "zz"}, {"type": "WordPiece", "vocab": {"": 0}},
        {"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}, {"type": "WordPiece", "vocab": [["a", 1]]},
        {"type": "WordLevel", "vocab": {}, "unk_token": "x"}, {"type": None, "vocab": {"a": 0}}, {},
    ],
    "added_tokens": [
        *(None, [1], [None], [{}], [{"special": True}], "abc", {"a": 1}, 5),
        *([{"id": each, "content": "x", **_TOKEN}] for each in (-1, 2**40)),
        [{"id": 2**32 - 1, "content": "", **_TOKEN}],
        [{"id": 5, "content": "a", **_TOKEN}] * 3,
    ],
}  # fmt: skip
"""Odd parts of a tokenizer.json; some of them make tokenizers panic."""


class Fuzzer:
    """Mutations drawn from one random generator, over copies of the files in `seeds`."""

    def __init__(self, seeds: Path, work: Path, seed: int) -> None:
        self.seeds, self.work, self.random = seeds, work, random.Random(seed)

    def copy(self, *names: str) -> Path:
        """Copy one of these folders to work on."""
        folder = self.work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.seeds / self.random.choice(names), folder)
        return folder

    def unusual(self) -> None:
        """Put something that is no usual file in the place of one."""
        path = self.random.choice(sorted(path for path in (self.work / "case").rglob("*") if path.is_file()))
        way = self.random.choice(["fifo", "sparse", "folder", "device", "nothing", "empty"])
        if way == "sparse":
            os.truncate(path, 1 << 40)
        elif way == "empty":
            os.truncate(path, 0)
        else:
            path.unlink()
            if way == "fifo":
                os.mkfifo(path)
            elif way == "folder":
                path.mkdir()
            else:
                path.symlink_to("/dev/zero" if way == "device" else "nothing")

    def bytes(self, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
        """Flip, set, delete, insert, copy or cut bytes between two places."""
        r, b = self.random, bytearray(data)
        for _ in range(r.choice([1, 1, 1, 2, 3, 8])):
            b = b or bytearray(1)
            end = min(len(b), len(b) if stop is None else stop)
            at = r.randrange(start, end) if start < end else len(b) - 1
            size = r.choice([1, 1, 2, 4, 16, 100])
            way = r.randrange(9)
            if way == 0:
                b[at] = r.randrange(256)
            elif way == 1:
                b[at] ^= 1 << r.randrange(8)
            elif way == 2:
                b[at] = r.choice(ODD_BYTES)
            elif way == 3:
                del b[at : at + size]
            elif way == 4:
                b[at:at] = bytes(r.choices(ODD_BYTES, k=size))
            elif way == 5:
                other = r.randrange(len(b))
                b[at : at + size] = b[other : other + size]
            elif way == 6 and r.random() < 0.3:
                del b[at:]
            elif way == 7:
                b[at : at + 8] = struct.pack("<Q", r.choice(WORDS))
            else:
                b[at : at + size % 5] = b"\xff" * (size % 5)
        return bytes(b)

    def json(self, data: bytes) -> bytes:
        """Change values, take keys away, add some, move parts; sometimes the bytes."""
        r = self.random
        if r.random() < 0.04:
            return r.choice(RAW)
        if r.random() < 0.2:
            return self.bytes(data)
        whole = json.loads(data)
        for _ in range(r.choice([1, 1, 1, 2, 3])):
            places = list(_places(whole, r))
            if not places:
                return self._dumps(self.value())
            parent, key = r.choice(places)
            way = r.random()
            if way < 0.6:
                parent[key] = self.value()
            elif way < 0.75:
                del parent[key]
            elif way < 0.9 and isinstance(parent, dict):
                names = ["extra", "type", "vocab", "model_type", "x" * 1000, r.choice(places)[1]]
                parent[r.choice(names)] = self.value()
            elif way < 0.9:
                parent.append(self.value())
            else:
                other, name = r.choice(places)
                if name in other if isinstance(other, dict) else name < len(other):
                    parent[key] = json.loads(json.dumps(other[name]))
        return self._dumps(whole)

    def value(self) -> Any:
        """Draw a value; a copy, so that no later change puts it into itself."""
        return copy.deepcopy(self.random.choice(VALUES))

    def _dumps(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=self.random.random() < 0.5).encode("utf-8", "surrogatepass")

    def message(self, data: bytes, num_layers: int = 2) -> bytes:
        """Change fields of a protobuf message, and of those inside."""
        r = self.random
        try:
            found = list(_wire(data))
        except (HanmoError, ValueError):
            return self.bytes(data)
        for _ in range(r.choice([1, 1, 2, 4]) if found else 0):
            at = r.randrange(len(found))
            number, kind, value = found[at]
            way = r.random()
            if way < 0.1:
                found.insert(at, found[r.randrange(len(found))])
                continue
            if way > 0.95:
                number = r.choice([1, 2, 3, 4, 5, 10, 35, 40, 41, 42, 43])
            if isinstance(value, int):
                value = r.choice([0, 1, 2, 3, 4, 5, 6, 7, 200, *WORDS])
            elif kind != 2:
                size = len(value)
                value = r.choice([b"\xff" * size, bytes(size), self.bytes(value)[:size].ljust(size)])
            elif num_layers and way < 0.7:
                value = self.message(value, num_layers - 1)
            else:
                value = r.choice([b"", b"\xff\xfe", b"a" * 5000, "▁".encode(), b"<0x41>", b"</s>", self.bytes(value)])
            found[at] = (number, kind, value)
        return b"".join(
            varint(number << 3 | kind)
            + (varint(value) if isinstance(value, int) else value if kind != 2 else varint(len(value)) + value)
            for number, kind, value in found
        )


def _wire(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (number, wire type, value) of a protobuf message's fields."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind, value = key & 7, 0
        if kind == 0:
            value, at = read_varint(data, at)
            yield key >> 3, kind, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size, at = read_varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield key >> 3, kind, data[at : at + size]
        at += size


def _places(value: Any, r: random.Random) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of the values inside, some forty of each container."""
    keys = list(value if isinstance(value, dict) else range(len(value))) if isinstance(value, dict | list) else []
    for key in keys if len(keys) < 40 else r.sample(keys, 40):
        yield value, key
        yield from _places(value[key], r)


Action = Callable[[], object]


def tensorflow_index(f: Fuzzer) -> Action:
    """Mutate the bytes of a .index, or the messages in it behind right checksums."""
    folder = f.copy("tf_bert", "tf_gpt2_ml")
    path = folder / "model.ckpt.index"
    data = path.read_bytes()
    if f.random.random() < 0.4:
        path.write_bytes(f.bytes(data))
        return lambda: load(folder)
    rows = list(read_table(data))
    for _ in range(f.random.choice([1, 1, 2, 4])):
        at = f.random.randrange(len(rows))
        rows[at] = (rows[at][0], f.message(rows[at][1]))
    made = io.BytesIO()
    write_table(sorted(dict(rows).items()), made.write, block_size=4096)
    path.write_bytes(made.getvalue())
    return lambda: load(folder)


def tensorflow_data(f: Fuzzer) -> Action:
    """Mutate the numbers of a TensorFlow checkpoint."""
    folder = f.copy("tf_bert", "tf_gpt2_ml")
    path = folder / "model.ckpt.data-00000-of-00001"
    path.write_bytes(f.bytes(path.read_bytes()))
    return lambda: load(folder)


def safetensors(f: Fuzzer) -> Action:
    """Mutate the header of a safetensors file, as bytes or as JSON."""
    folder = f.copy("hf_bert", "own_gpt2_ml", "shards")
    path = f.random.choice(sorted(folder.glob("*.safetensors")))
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    if f.random.random() < 0.5:
        header = f.json(data[8:size])
        data = len(header).to_bytes(8, "little") + header + data[size:]
    else:
        data = f.bytes(data, 0, size)
    path.write_bytes(data)
    return lambda: load(folder)


def safetensors_index(f: Fuzzer) -> Action:
    """Mutate the index json of several safetensors files; name other files in it."""
    folder = f.copy("shards")
    path = folder / "model.safetensors.index.json"
    data = json.loads(path.read_bytes())
    if f.random.random() < 0.5:
        name = f.random.choice(list(data["weight_map"]))
        others = ["../x", "/etc/passwd", "..", ".", "", "a/b", "vocab.txt", "config.json", "\0", 5, None, [], "x" * 300]
        data["weight_map"][name] = f.random.choice([*others, *data["weight_map"].values()])
        path.write_text(json.dumps(data))
    else:
        path.write_bytes(f.json(path.read_bytes()))
    return lambda: load(folder)


def torch_zip(f: Fuzzer) -> Action:
    """Mutate a file of torch.save: its pickle and records in a whole archive, or the archive's bytes."""
    folder = f.copy("bin_bert")
    path = folder / "pytorch_model.bin"
    data = path.read_bytes()
    if f.random.random() < 0.6:
        made = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if f.random.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", method) as new:
            for name in old.namelist():
                record = old.read(name)
                new.writestr(name, f.bytes(record) if name.endswith("data.pkl") or f.random.random() < 0.02 else record)
        path.write_bytes(made.getvalue())
    else:
        path.write_bytes(f.bytes(data, max(0, len(data) - 9000)) if f.random.random() < 0.5 else f.bytes(data))
    return lambda: load(folder)


def torch_legacy(f: Fuzzer) -> Action:
    """Mutate a file of torch before 1.6, most of all its pickles."""
    folder = f.copy("legacy_bert")
    path = folder / "pytorch_model.bin"
    data = path.read_bytes()
    path.write_bytes(f.bytes(data, 0, 12_000 if f.random.random() < 0.8 else None))
    return lambda: load(folder)


def own_config(f: Fuzzer) -> Action:
    """Mutate a hanmo.json."""
    folder = f.copy("own_gpt2_ml", "own_bert")
    path = folder / "hanmo.json"
    path.write_bytes(f.json(path.read_bytes()))
    return lambda: load(folder)


def config(f: Fuzzer) -> Action:
    """Mutate a config.json of TensorFlow's or Hugging Face's."""
    folder = f.copy("tf_bert", "tf_gpt2_ml", "tf_albert", "tf_t5", "tf_nezha", "tf_roformer", "tf_gpt2", "hf_bert")
    path = folder / "config.json"
    path.write_bytes(f.json(path.read_bytes()))
    return lambda: load(folder)


def vocabulary(f: Fuzzer) -> Action:
    """Mutate a vocab.txt and the small JSON files beside it."""
    folder = f.copy("tf_bert", "own_gpt2_ml")
    path = folder / "vocab.txt"
    path.write_bytes(f.bytes(path.read_bytes()))
    for name, text in (
        (
            "tokenizer_config.json",
            b'{"do_lower_case": true, "tokenizer_class": "BertTokenizer", "model_max_length": 5}',
        ),
        ("added_tokens.json", b'{"[X]": 120, "[Y]": 121}'),
        ("special_tokens_map.json", b'{"unk_token": "[UNK]", "pad_token": {"content": "[PAD]"}}'),
        ("training.json", b'{"distinct_unknown": 5}'),
        ("generation_config.json", b'{"eos_token_id": 3, "max_length": 20, "top_p": 0.9}'),
    ):
        if f.random.random() < 0.3:
            (folder / name).write_bytes(f.json(text))
    return lambda: load(folder, write=True)


def tokenizer_json(f: Fuzzer) -> Action:
    """Mutate a tokenizer.json: BPE, Unigram, WordPiece, with SentencePiece's table of characters too."""
    path = f.copy("tokenizers") / f.random.choice(["bpe.json", "unigram.json", "wordpiece.json", "precompiled.json"])
    if path.name == "precompiled.json" and f.random.random() < 0.3:
        data = json.loads(path.read_bytes())
        table = base64.b64decode(data["normalizer"]["precompiled_charsmap"])
        data["normalizer"]["precompiled_charsmap"] = base64.b64encode(f.bytes(table)).decode()
        path.write_text(json.dumps(data))
    elif f.random.random() < 0.4:
        part = f.random.choice(list(PARTS))
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {part: f.random.choice(PARTS[part])}))
    else:
        path.write_bytes(f.json(path.read_bytes()))
    return lambda: tokenize(path)


def sentencepiece_model(f: Fuzzer) -> Action:
    """Mutate a .model: its fields, or its bytes."""
    path = f.copy("tokenizers") / f.random.choice(["unigram.model", "bpe.model"])
    data = path.read_bytes()
    path.write_bytes(f.message(data) if f.random.random() < 0.6 else f.bytes(data))
    return lambda: tokenize(path)


def packed(f: Fuzzer) -> Action:
    """Mutate packed data: its facts, documents and ids."""
    folder = f.copy("packed")
    path = folder / f.random.choice(["p.json", "p.json", "p.bin", "p.documents", "p.documents"])
    data = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(f.json(data))
    else:  # a file of another size is refused at once
        path.write_bytes((f.bytes(data) + data)[: len(data)] if f.random.random() < 0.8 else f.bytes(data))

    def read() -> None:
        batches = PackedData(PackedFile(folder / "p"), window=8, rows=2).batches()
        for _, _ in zip(range(4), batches, strict=False):
            pass

    return read


def tfrecord(f: Fuzzer) -> Action:
    """Mutate a TFRecord file of ids: an example before its checksums are made, or the bytes."""
    folder = f.copy("packed")
    path = folder / "ids.tfrecord"
    data = path.read_bytes()
    example = data[12:-4]
    path.write_bytes(record(f.message(example, 5)) if f.random.random() < 0.7 else f.bytes(data))
    encoder = TokenEncoder(load_tokenizer(folder / "vocab.txt"))
    return lambda: pack([path], folder / "new", encoder=encoder, processes=1)


def record(example: bytes) -> bytes:
    """Frame an example as in a TFRecord file."""
    parts = len(example).to_bytes(8, "little"), example
    return b"".join(part + masked(crc32c(part)).to_bytes(4, "little") for part in parts)


def run_folder(f: Fuzzer) -> Action:
    """Mutate what a run over prompts, or a training run, keeps to go on with."""
    folder = f.copy("run")
    names = ["results.jsonl.run", "results.jsonl", "prompts.jsonl", "log.jsonl", "state.pt"]
    path = folder / f.random.choice(names)
    data = path.read_bytes()
    path.write_bytes(f.json(data) if path.suffix == ".run" else f.bytes(data))

    def read() -> None:
        if path.name == "log.jsonl":
            read_log(path)
        elif path.name == "state.pt":
            read_state(folder)
        else:
            Run(folder / "prompts.jsonl", folder / "results.jsonl", settings={"top_k": 5}).close()

    return read


KINDS = (
    *(tensorflow_index, tensorflow_data, safetensors, safetensors_index, torch_zip, torch_legacy, own_config, config),
    *(vocabulary, tokenizer_json, sentencepiece_model, packed, tfrecord, run_folder),
)


def load(folder: Path, *, write: bool = False) -> None:
    """Inspect and load a checkpoint, and touch all that it holds."""
    hanmo.inspect(folder)
    loaded = hanmo.load(folder)
    for parameter in loaded.model.parameters():
        parameter.detach().double().sum()
    if write and loaded.tokenizer is not None and loaded.config.can_generate:
        loaded.write("今天天气", max_chars=4, seed=1)


def tokenize(path: Path) -> None:
    """Load a tokenizer, and use all that it has."""
    tokenizer = load_tokenizer(path)
    for text in ("今天天气不错", "hello  World ﬁ ①", "[CLS] a\0b \U0001f600", "春" * 50):
        ids = tokenizer.encode(text).ids
        tokenizer.encode(text, detail=True, special=True)
        tokenizer.decode(ids)
        tokenizer.decode(ids, special=True)
    for number in range(min(tokenizer.vocab_size, 300)):
        tokenizer.id_to_token(number)


def make_seeds(folder: Path) -> None:
    """Make one whole file of each kind, tiny."""
    for family, name in (
        ("gpt2_ml_original", "tf_gpt2_ml"), ("bert", "tf_bert"), ("albert", "tf_albert"), ("t5_1.0", "tf_t5"),
        ("nezha", "tf_nezha"), ("roformer", "tf_roformer"), ("gpt2", "tf_gpt2"),
    ):  # fmt: skip
        (folder / name).mkdir(parents=True)
        for file in ("config.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"):
            shutil.copy(GOLDENS / family / file, folder / name)
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [*marks, *dict.fromkeys("今天气不错双十一科学空间春眠觉晓处闻啼鸟，。")]
    characters += [chr(0x4E80 + at) for at in range(200) if chr(0x4E80 + at) not in characters]
    for name in ("tf_bert", "tf_gpt2_ml", "tf_gpt2"):
        rows = json.loads((folder / name / "config.json").read_text())["vocab_size"]
        (folder / name / "vocab.txt").write_text("".join(f"{each}\n" for each in characters[:rows]), "utf-8")
    hanmo.load(folder / "tf_gpt2_ml").save(folder / "own_gpt2_ml")
    bert = hanmo.load(folder / "tf_bert")
    bert.save(folder / "own_bert")
    bert.save(folder / "hf_bert", form="huggingface")
    with open_source(folder / "hf_bert") as source:
        tensors = {name: np.array(source.read(name)) for name in source.tensors}
    for name in ("shards", "bin_bert", "legacy_bert"):
        shutil.copytree(folder / "hf_bert", folder / name, ignore=shutil.ignore_patterns("*.safetensors"))
    write_safetensors(folder / "shards" / "model.safetensors", tensors.items(), max_shard_bytes=40_000)
    whole = {name: torch.from_numpy(array) for name, array in tensors.items()}
    torch.save(whole, folder / "bin_bert" / "pytorch_model.bin")
    torch.save(whole, folder / "legacy_bert" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    make_tokenizers(folder / "tokenizers", marks)
    (folder / "packed").mkdir()
    parts = [Part(text * (number % 4 + 1), "ab"[number % 2]) for number, text in enumerate(TEXTS * 5)]
    tokenizer = load_tokenizer(folder / "tf_bert" / "vocab.txt")
    encoder = TokenEncoder(tokenizer)
    pack_documents(parts, folder / "packed" / "p", encoder=encoder, processes=1, marks={"a": "今天"})
    ids = b"".join(map(varint, tokenizer.encode(TEXTS[0]).ids))
    entry = encode_bytes(1, b"token_ids") + encode_bytes(2, encode_bytes(3, encode_bytes(1, ids)))
    (folder / "packed" / "ids.tfrecord").write_bytes(record(encode_bytes(1, encode_bytes(1, entry))))
    shutil.copy(folder / "tf_bert" / "vocab.txt", folder / "packed")
    make_run(folder / "run")


def make_tokenizers(folder: Path, marks: list[str]) -> None:
    """Train a SentencePiece model and a tokenizer.json of each kind."""
    folder.mkdir()
    for kind in ("unigram", "bpe"):
        made = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 50), model_writer=made, vocab_size=110, model_type=kind,
            character_coverage=1.0, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
        (folder / f"{kind}.model").write_bytes(made.getvalue())
    t = tokenizers
    alphabet = t.pre_tokenizers.ByteLevel.alphabet()
    plain, levels = {"special_tokens": marks, "show_progress": False}, t.pre_tokenizers.ByteLevel()
    for name, model, trainer, cut, join in (
        ("bpe", t.models.BPE(), t.trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=400, **plain), levels,
         t.decoders.ByteLevel()),
        ("unigram", t.models.Unigram(), t.trainers.UnigramTrainer(vocab_size=200, unk_token="[UNK]", **plain),
         t.pre_tokenizers.Metaspace(), t.decoders.Metaspace()),
        ("wordpiece", t.models.WordPiece(unk_token="[UNK]"), t.trainers.WordPieceTrainer(vocab_size=200, **plain),
         t.pre_tokenizers.BertPreTokenizer(), t.decoders.WordPiece()),
    ):  # fmt: skip
        tokenizer = t.Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = t.normalizers.NFKC(), cut, join
        tokenizer.train_from_iterator(TEXTS * 50, trainer)
        ids = [(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = t.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
        tokenizer.save(str(folder / f"{name}.json"))
    normalizer = next(value for number, value in fields((folder / "unigram.model").read_bytes()) if number == 3)
    table = next(value for number, value in fields(normalizer) if number == 2)
    data = json.loads((folder / "unigram.json").read_bytes())
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    (folder / "precompiled.json").write_text(json.dumps(data))


def make_run(folder: Path) -> None:
    """Make what a run over prompts and a training run leave behind."""
    folder.mkdir()
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    with Run(prompts, folder / "results.jsonl", settings={"top_k": 5}, seed=1) as run:
        loaded = hanmo.load(folder.parent / "tf_gpt2_ml")
        for lines in BatchWriter(loaded, seed=1, how={"max_chars": 3}).write(read_rows(prompts)):
            run.append(lines[:2])
            break
    log = [{"step": 1, "loss": 2.5}, {"step": 2, "evaluation": {"loss": 2.0}, "averaged": False}]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    state = {"place": {"step": 2}, "settings": {"lr": 0.1}, "generators": [torch.get_rng_state()]}
    torch.save(state | {"optimizer": {"state": {0: {"m": torch.ones(3)}}, "param_groups": []}}, folder / "state.pt")


Verdict = tuple[str, str, int]


def in_child(read: Callable[[int], Verdict], numbers: range) -> Iterator[Verdict]:
    """Read mutations in a forked process as long as it lives; yield each one's verdict, what it said and its bytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _quiet_and_bounded()
        for number in numbers:
            os.write(writer, json.dumps(read(number)).encode() + b"\n")
        os._exit(0)
    os.close(writer)
    done = 0
    with open(reader, "rb", buffering=0) as lines:
        while done < len(numbers):
            line = lines.readline() if select.select([lines], [], [], PATIENCE)[0] else None
            if not line:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                yield ("hang", "", 0) if line is None else ("crash", f"status {status}", 0)
                return
            done += 1
            verdict, text, taken = json.loads(line)
            yield verdict, text, taken
    os.waitpid(child, 0)


def _quiet_and_bounded() -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 4 * BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def judged(action: Action) -> Verdict:
    """Do what may fail, and say what came of it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before, began = _peak(), time.process_time()
    try:
        action()
        found = ("read", "")
    except HanmoError as error:
        found = ("refused", str(error)[:300])
    except BaseException as error:  # that is what is looked for
        last = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in last if "hanmo" in Path(frame.filename).parts] or last
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        found = ("foreign", f"{where} {type(error).__name__}: {str(error)[:200]}")
    taken = _peak() - before
    if time.process_time() - began > SECONDS:
        return "hang", found[1], taken
    return ("memory", found[1], taken) if taken > BYTES and found[0] != "foreign" else (*found, taken)


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def fuzz(mutations: int, seed: int, *, only: str | None = None, keep: Path | None = None) -> dict[str, Any]:
    """Read so many mutated files, the kinds by turns; return the counts of verdicts and each fault once."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # threads do not survive a fork
    kinds = [kind for kind in KINDS if only in (None, kind.__name__)]
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    peak = done = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_seeds(place / "seeds")
        list(jieba_words("今天", hmm=False))  # its dictionary takes a second, which no file is to blame for

        def read(number: int) -> Verdict:
            fuzzer = Fuzzer(place / "seeds", place, seed * 1_000_003 + number)
            action = kinds[number % len(kinds)](fuzzer)
            if fuzzer.random.random() < 0.03:
                fuzzer.unusual()
            return judged(action)

        while done < mutations:
            for verdict, text, taken in in_child(read, range(done, min(done + TOGETHER, mutations))):
                kind = kinds[done % len(kinds)].__name__
                counts[verdict] += 1
                peak = max(peak, taken)
                if verdict not in ("read", "refused"):
                    fault = f"{kind}: {verdict} {text}"
                    faults[fault] += 1
                    if faults[fault] == 1:
                        print(f"mutation {done}: {fault}", flush=True)
                        if keep is not None:
                            again = keep / f"{kind}-{done}"
                            again.mkdir(parents=True, exist_ok=True)
                            kinds[done % len(kinds)](Fuzzer(place / "seeds", again, seed * 1_000_003 + done))
                done += 1
                if done % 1000 == 0:
                    print(f"{done:,} of {mutations:,}: {dict(counts)}", file=sys.stderr, flush=True)
    return {"kinds": len(kinds), "counts": dict(counts), "faults": dict(faults), "peak": peak}


def main() -> None:
    """Run from the command line; exit with 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[kind.__name__ for kind in KINDS])
    parser.add_argument("--keep", type=Path, help="folder for the first file of each fault")
    given = parser.parse_args()
    began = time.monotonic()
    found = fuzz(given.mutations, given.seed, only=given.only, keep=given.keep)
    print(
        f"{given.mutations:,} mutations of {found['kinds']} kinds of file in {time.monotonic() - began:.0f} s: "
        f"{found['counts']}; most memory {found['peak'] >> 20} MiB"
    )
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
