"""NEZHA (Huawei, NEZHA-TensorFlow): BERT with relative positions from a fixed sinusoidal table, clipped at ±64.

Its code computes gelu by tanh and norms with eps 1e-12; the table is not in the checkpoint.
"""

from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.families import bert, keys
from hanmo.families.family import TENSORFLOW, Config, Family, Names, auto_map, code_files


def _huggingface_config(data: Config) -> ModelConfig:
    clip = data.get("max_relative_position", 64)
    return bert.huggingface_config(data, family="nezha", position="relative", positions=None, relative_clip=clip)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    clip = config.main.relative_clip
    data = bert.huggingface_original(config, model_type="nezha", word="Nezha", max_relative_position=clip)
    return data | auto_map("nezha", "Nezha", AutoModel="Model", AutoModelForMaskedLM="ForMaskedLM")


NEZHA = Family(
    "nezha",
    tensorflow=Names.of(
        TENSORFLOW,
        bert.GOOGLE_NAMES,
        config=partial(bert.encoder_config, family="nezha", gelu="gelu_tanh", position="relative", positions=None),
        original=lambda config: keys.write_model(config, gelu="gelu_tanh") | {"use_relative_position": True},
        marks=("bert/encoder/layer_0/attention/self/query/bias",),
        absent=("bert/embeddings/position_embeddings", "bert/encoder/embedding_hidden_mapping_in/kernel"),
        dropped={r"^(bert/)?embeddings/position_embeddings$": "an absolute table that the code never reads"},
        prefix="bert/",
    ),
    # transformers 4, models/nezha/modeling_nezha.py, which release 5 does not have; older files
    # (lonePatient/NeZha_Chinese_PyTorch) say "bert.".
    huggingface=bert.huggingface_names(
        "nezha",
        {**bert.names("nezha", position=False), "pooler.dense": "nezha.pooler.dense", **bert.NSP, **bert.MLM},
        config=_huggingface_config,
        original=_huggingface_original,
        code=code_files("nezha"),
        absent=("nezha.embeddings.position_embeddings.weight",),
        dropped={r".*\.relative_positions_encoding\.position\w+$": "the table of relative positions, which is fixed"},
    ),
)
