"""No recorded case of an original gets lost: tests/data/goldens holds at least as many as it did."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / "data" / "goldens"
LISTS = {
    "decoder.json": ("beam", "sets", "sample_seeded", "wraps"),
    "snippets.json": (
        "text_segmentate", "longest_common_substring", "longest_common_subsequence", "truncate_sequences",
        "sequence_padding", "ViterbiDecoder", "orthogonally_resize", "DataGenerator", "set_rtype",
    ),
    "tokenizer.json": (
        "encode_cases", "tokenize_maxlen", "decode_tokens_cases", "decode_ids_cases", "gpt2ml_fulltokenizer_bert",
        "gpt2ml_fulltokenizer_clue",
    ),
}  # fmt: skip


def read(path: Path):
    return json.loads(path.read_text("utf-8"))


def arrays(path: Path) -> int:
    with np.load(path) as file:
        return len(file.files)


def test_there_are_no_fewer_golden_cases_than_before():
    """Count what the tests of `hanmo.compat`, of tasks, of training and of GPT2_ML compare with.

    Of a model kind: the cases that cases.json lists, each a forward pass of bert4keras.   "generate.json": prompts that
    were continued.   Of the other JSON files: entries of the lists with an input and its recorded output.
    Of .npz files without a list of cases (optimizers, tasks, the original GPT2_ML): arrays.
    """
    found = Counter({path.parent.name: len(read(path)) for path in GOLDENS.glob("*/cases.json")})
    found["generate.json"] = len(read(GOLDENS / "generate.json"))
    for name, lists in LISTS.items():
        content = read(GOLDENS / name)
        found[name] = sum(len(content[each]) for each in lists)
    found["adafactor.npz"] = arrays(GOLDENS / "adafactor.npz")
    found["gpt2_ml_original arrays"] = arrays(GOLDENS / "gpt2_ml_original" / "cases.npz")
    found["tasks arrays"] = sum(map(arrays, (GOLDENS / "tasks").glob("*.npz")))
    least = {
        "albert": 11, "albert_unshared": 11, "bert": 24, "bert_headsize": 1, "bert_shared_segment": 1, "electra": 3,
        "gpt": 2, "gpt2": 5, "gpt2_ml": 5, "gpt_nosegment": 1, "gpt_shared_segment": 1, "mt5_1.1": 7, "nezha": 12,
        "roformer": 13, "roformer_v2": 6, "t5_1.0": 8, "t5_1.1": 8, "generate.json": 288, "decoder.json": 676,
        "snippets.json": 367, "tokenizer.json": 463, "adafactor.npz": 267, "gpt2_ml_original arrays": 77,
        "tasks arrays": 1029,
    }  # fmt: skip
    assert {name: found[name] for name, count in least.items() if found[name] < count} == {}
