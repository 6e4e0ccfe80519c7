"""NEZHA (Huawei, NEZHA-TensorFlow): BERT with relative positions from a fixed sinusoidal table, clipped at ±64.

Its code computes gelu by tanh and norms with eps 1e-12; the table is not in the checkpoint.
"""

from typing import Any

from hanmo.config import ModelConfig
from hanmo.families.bert import BERT, HEADS, encoder_config, rows
from hanmo.families.family import TRAINING, Config, Family, Names, write_transformer


def _config(data: Config) -> ModelConfig:
    return encoder_config(data, family="nezha", gelu="gelu_tanh", position="relative", positions=None)


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_transformer(config, gelu="gelu_tanh") | {"use_relative_position": True}


assert BERT.tensorflow is not None
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
        dropped=TRAINING | {r"^bert/embeddings/position_embeddings$": "an absolute table that the code never reads"},
    ),
)
