"""NEZHA (Huawei, NEZHA-TensorFlow): BERT with relative positions from a fixed sinusoidal table, clipped at ±64.

Its code computes gelu by tanh and norms with eps 1e-12; the table is not in the checkpoint.
"""

from dataclasses import replace
from typing import Any

from hanmo.config import ModelConfig
from hanmo.families.bert import (
    BERT,
    HEADS,
    HUGGINGFACE_DROPPED,
    encoder_config,
    huggingface_encoder,
    huggingface_original,
    huggingface_repeats,
    huggingface_rows,
    huggingface_sizes,
    rows,
)
from hanmo.families.family import Config, Family, Names, Row, write_transformer


def _config(data: Config) -> ModelConfig:
    return encoder_config(data, family="nezha", gelu="gelu_tanh", position="relative", positions=None)


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_transformer(config, gelu="gelu_tanh") | {"use_relative_position": True}


def _huggingface_config(data: Config) -> ModelConfig:
    clip = data.get("max_relative_position", 64)
    return huggingface_encoder(data, family="nezha", position="relative", positions=None, relative_clip=clip)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    data = huggingface_original("nezha", "Nezha")(config)
    data.pop("embedding_size", None)
    return data | {"max_relative_position": config.main.relative_clip}


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    theirs = [replace(r, theirs=r.theirs.replace("bert.", "nezha.")) for r in huggingface_rows(config)]
    return [r for r in theirs if "position" not in r.theirs]


assert BERT.tensorflow is not None and BERT.huggingface is not None
NEZHA = Family(
    "nezha",
    tensorflow=Names(
        config=_config,
        original=_write,
        rows=rows,
        sizes=BERT.tensorflow.sizes,
        heads=HEADS,
        marks=("bert/encoder/layer_0/attention/self/query/bias",),
        absent=("bert/embeddings/position_embeddings", "bert/encoder/embedding_hidden_mapping_in/kernel"),
        dropped={r"^(bert/)?embeddings/position_embeddings$": "an absolute table that the code never reads"},
        prefix="bert/",
    ),
    # transformers 4, models/nezha/modeling_nezha.py; older files (lonePatient/NeZha_Chinese_PyTorch) say "bert.".
    huggingface=Names(
        config=_huggingface_config,
        original=_huggingface_original,
        rows=_huggingface_rows,
        sizes=huggingface_sizes("nezha"),
        heads={head: name.replace("bert.", "nezha.") for head, name in BERT.huggingface.heads.items()},
        absent=("nezha.embeddings.position_embeddings.weight",),
        dropped=HUGGINGFACE_DROPPED
        | {r".*\.relative_positions_encoding\.position\w+$": "the table of relative positions, which is fixed"},
        repeats=huggingface_repeats("nezha"),
        model_type="nezha",
        prefix="nezha.",
    ),
)
