"""Tiny tasks for the tests: a BERT of random weights, a vocabulary, and rows that follow a rule."""

from pathlib import Path
from typing import Any

import numpy as np

from hanmo.checkpoint.save import save
from hanmo.families import FAMILIES
from hanmo.model import Model

CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈，。！？"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *"abcdefghij0123456789"]


def model_folder(folder: Path, *, family: str = "bert", positions: int = 64, seed: int = 0) -> Path:
    """Write a tiny encoder of random weights with its vocabulary, and return the folder."""
    data = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": positions, "hidden_act": "gelu", "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1,
    }  # fmt: skip
    names = FAMILIES[family].tensorflow
    assert names is not None
    vocabulary = folder.with_name(f"{folder.name}-vocab.txt")
    vocabulary.write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    save(Model(names.config(data)).initialize(seed), folder, tokenizer={"vocab.txt": vocabulary})
    return folder


def texts(count: int, *, seed: int = 0, longest: int = 20) -> list[str]:
    """Draw different texts of 4 characters or more."""
    draw = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choice(list(CHARACTERS), draw.integers(4, longest + 1)))] = None
    return list(found)


def sky_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows whose label says whether the text has 日 or 月; about half have."""
    rows = []
    for number, text in enumerate(texts(count, seed=seed)):
        plain = text.replace("日", "云").replace("月", "云")
        place = number % len(plain)
        text = plain[:place] + "日月"[number % 4 // 2] + plain[place + 1 :] if number % 2 else plain
        rows.append({"text": text, "label": "sky" if number % 2 else "earth"})
    return rows


def pair_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make pairs whose label says whether the second text has 日."""
    rows = sky_rows(count, seed=seed)
    others = texts(count, seed=seed + 1000, longest=8)
    return [{"a": other, "b": row["text"], "label": row["label"]} for row, other in zip(rows, others, strict=True)]


def key_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows with a label for each of two characters that the text has."""
    rows = []
    for number, text in enumerate(texts(count, seed=seed)):
        chosen = [label for bit, label in enumerate(("金", "玉")) if number >> bit & 1]
        plain = "".join("云" if character in "金玉" else character for character in text)
        rows.append({"text": plain + "".join(chosen), "labels": chosen})
    return rows


def number_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows whose score is the share of water in the text."""
    rows = []
    for number, text in enumerate(texts(count, seed=seed)):
        wet = number % 5
        rows.append({"text": "水" * wet + text.replace("水", "云")[wet:] if len(text) > 4 else text, "score": wet / 4})
    return [row for row in rows if row["text"].count("水") == row["score"] * 4]


def entity_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows with spans: 天 and the 地 after it, 日 and the 月 after it; most have one of each."""
    rows = []
    for number, text in enumerate(texts(count, seed=seed, longest=12)):
        draw, spans = np.random.default_rng([seed, number]), []
        text = "".join("云" if character in "天地日月" else character for character in text)
        for first, after, label in (("天", "地", "SKY"), ("日", "月", "SUN")):
            if draw.random() < 0.7:
                found = first + after * int(draw.integers(0, 3))
                spans.append({"start": len(text), "stop": len(text) + len(found), "label": label})
                text += found + "云"
        rows.append({"text": text, "spans": spans})
    return rows


def word_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows of words: 天, 宇宙 and 日月辰 among words of one character."""
    rows = []
    for number, text in enumerate(texts(count, seed=seed, longest=12)):
        draw = np.random.default_rng([seed, number])
        words = [
            character if draw.random() < 0.5 else ("天", "宇宙", "日月辰")[int(draw.integers(3))] for character in text
        ]
        rows.append({"text": "".join(words), "words": words})
    return rows
