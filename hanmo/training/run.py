"""What the runs from packed data share: shapes of small models, the data, evaluation over files, samples as text.

Joins packed files, a vocabulary and a model for the loop. Knows no command line.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import DataError
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training.data.packed import PackedFile
from hanmo.training.loop import SCORE
from hanmo.training.sample import sample
from hanmo.training.score import Bits, bits_per_character, spent_on

__all__ = ["evaluation", "gpt2_ml_config", "held_out", "sampler"]


def gpt2_ml_config(
    *, vocab_size: int, num_layers: int, hidden_size: int, positions: int, head_dim: int = 64, dropout: float = 0.0
) -> ModelConfig:
    """Describe a model of GPT2_ML's structure in another size; the feed-forward is four times as wide.

    Raises ConfigError where sizes do not fit.
    """
    names = FAMILIES["gpt2_ml"].tensorflow
    assert names is not None
    return names.config(
        {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": max(1, hidden_size // head_dim),
            "intermediate_size": 4 * hidden_size,
            "max_position_embeddings": positions,
            "hidden_act": "gelu",
            "hidden_dropout_prob": dropout,
        }
    )


def held_out(folder: Path, *, vocabulary_sha256: str) -> dict[str, PackedFile]:
    """Open every valid-NAME.bin of a folder: {NAME: file}. Raises DataError if there is none."""
    names = sorted(path.stem for path in folder.glob("valid-*.json"))
    if not names:
        raise DataError(f"{folder} holds no valid-*.json; pack held-out documents there, or name another folder")
    return {
        name.removeprefix("valid-"): PackedFile(folder / name, vocabulary_sha256=vocabulary_sha256) for name in names
    }


def evaluation(
    files: Mapping[str, PackedFile],
    *,
    distinct_unknown: int,
    window: int,
    apart: Iterable[str] = (),
    **options: Any,
) -> Callable[[Model], dict[str, Any]]:
    """Make the function that measures a model on every file, and on all but `apart` together.

    distinct_unknown: of the training data.   options: what else `hanmo.training.score.spent_on` takes.
    """
    left_out = set(apart)

    def evaluate(model: Model) -> dict[str, Any]:
        found = {name: spent_on(model, file, window=window, **options) for name, file in files.items()}
        total = sum((bits for name, bits in found.items() if name not in left_out), Bits(0.0, 0, 0, 0))
        each = {name: _record(bits, distinct_unknown) for name, bits in found.items()}
        return {**_record(total, distinct_unknown), "files": each}

    return evaluate


def sampler(
    tokenizer: Tokenizer, prompts: Sequence[str], *, count: int, top_k: int = 20, seed: int = 0
) -> Callable[[Model], str]:
    """Make the function that writes on from each prompt, as one text of several paragraphs.

    A text begins with the vocabulary's end mark, which stood before each document in training, and ends with it.
    """
    special = tokenizer.special
    assert special.end is not None
    end = special.end
    ids = [[end, *tokenizer.encode(prompt, ends=False).ids] for prompt in prompts]
    banned = sorted(special.known() - {end})

    def write(model: Model) -> str:
        written = sample(model, ids, count=count, end=end, top_k=top_k, banned=banned, seed=seed)
        pairs = zip(prompts, written, strict=True)
        return "\n\n".join(
            f"{json.dumps(prompt, ensure_ascii=False)}\n{prompt}{tokenizer.decode(row)}" for prompt, row in pairs
        )

    return write


def _record(spent: Bits, distinct_unknown: int) -> dict[str, float]:
    return {
        SCORE: bits_per_character(spent, distinct_unknown=distinct_unknown),
        "nats": spent.nats,
        "tokens": spent.tokens,
        "characters": spent.characters,
        "unknown": spent.unknown,
    }
