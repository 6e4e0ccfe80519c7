"""NEZHA (Huawei, NEZHA-TensorFlow): BERT with relative positions from a fixed sinusoidal table, clipped at ±64.

Its code computes gelu by tanh and norms with eps 1e-12; the table is not in the checkpoint.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.families import bert
from hanmo.families.family import Config, Family, Names, Row, write_transformer


def _original(config: ModelConfig) -> dict[str, Any]:
    return write_transformer(config, gelu="gelu_tanh") | {"use_relative_position": True}


def _huggingface_config(data: Config) -> ModelConfig:
    clip = data.get("max_relative_position", 64)
    return bert.huggingface_encoder(data, family="nezha", position="relative", positions=None, relative_clip=clip)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    return bert.huggingface_original("nezha", "Nezha")(config) | {"max_relative_position": config.main.relative_clip}


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    theirs = [replace(r, theirs=r.theirs.replace("bert.", "nezha.")) for r in bert.huggingface_rows(config)]
    return [r for r in theirs if "position" not in r.theirs]


NEZHA = Family(
    "nezha",
    tensorflow=Names(
        config=partial(bert.encoder_config, family="nezha", gelu="gelu_tanh", position="relative", positions=None),
        original=_original,
        rows=bert.rows,
        sizes=bert.google_sizes("bert"),
        heads=bert.HEADS,
        marks=("bert/encoder/layer_0/attention/self/query/bias",),
        absent=("bert/embeddings/position_embeddings", "bert/encoder/embedding_hidden_mapping_in/kernel"),
        dropped={r"^(bert/)?embeddings/position_embeddings$": "an absolute table that the code never reads"},
        prefix="bert/",
    ),
    # transformers 4, models/nezha/modeling_nezha.py; older files (lonePatient/NeZha_Chinese_PyTorch) say "bert.".
    huggingface=bert.huggingface_names(
        "nezha",
        config=_huggingface_config,
        original=_huggingface_original,
        rows=_huggingface_rows,
        heads={
            "pool": "nezha.pooler.dense.weight",
            "nsp": "cls.seq_relationship.weight",
            "mlm": "cls.predictions.bias",
        },
        absent=("nezha.embeddings.position_embeddings.weight",),
        dropped={r".*\.relative_positions_encoding\.position\w+$": "the table of relative positions, which is fixed"},
        repeats=bert.huggingface_repeats("nezha"),
    ),
)
