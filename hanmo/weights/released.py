"""The checkpoints that their makers published, by the shapes that only they have. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RELEASED", "Released"]


@dataclass(frozen=True)
class Released:
    """A published checkpoint: its name, the SHA256 of its data file, and what its config.json says beside sizes."""

    name: str
    sha256: str
    config: Mapping[str, Any]


_MEGA = {
    "initializer_range": 0.014142135623731,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}

# The sums are those that the README of imcaspar/gpt2-ml gives.
RELEASED = {
    ("gpt2_ml", 21130, 48, 1536): Released(
        "GPT2_ML 1.5B, 15 GB corpus, BERT vocabulary (model.ckpt-100000)",
        "4a6e5124df8db7ac2bdd902e6191b807a6983a7f5d09fb10ce011f9a073b183e",
        _MEGA,
    ),
    ("gpt2_ml", 8021, 48, 1536): Released(
        "GPT2_ML 1.5B, 30 GB corpus, CLUE vocabulary (model.ckpt-220000)",
        "e698cc97a7f5f706f84f58bb469d614e51d3c0ce5f9ab9bf77e01e3fcb41d482",
        _MEGA,
    ),
}
"""By (family, vocabulary rows, depth, width)."""
