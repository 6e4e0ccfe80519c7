"""RoFormer and RoFormerV2 (Zhuiyi): BERT with rotary positions; V2 without biases, its RMS norms without weights.

Both were trained with bert4keras itself, so its numbers are the original's: exact gelu, eps 1e-7 in the blocks.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import bert
from hanmo.families.family import Config, Family, Names, Row, blocks, layers, row, torch_pair, write_transformer


def _config(data: Config) -> ModelConfig:
    # The number of positions limits nothing here, but other code builds a table of them.
    positions = data.get("max_position_embeddings", 512)
    return bert.encoder_config(
        data, family="roformer", gelu="gelu_erf", position="rotary", positions=positions, norm_eps=1e-7
    )


def _v2_config(data: Config) -> ModelConfig:
    config = bert.encoder_config(
        data,
        family="roformer_v2",
        gelu="gelu_erf",
        position="rotary",
        positions=None,
        norm="rms",
        norm_eps=1e-7,
        embedding_norm_eps=1e-7,
        norm_scale=False,
        norm_bias=False,
        bias=False,
    )
    return replace(config, output="lm", pool="none", nsp=False)


def _v2_rows(config: ModelConfig) -> list[Row]:
    kept = [r for r in bert.rows(config) if r.theirs.endswith(("kernel", "embeddings"))]
    return [
        *[r for r in kept if not r.ours[0].startswith("pooler") and not r.theirs.startswith("cls/")],
        row("output.project.weight", "cls/predictions/transform/dense/kernel", "transpose"),
    ]


def _huggingface_config(data: Config) -> ModelConfig:
    if data.get("rotary_value", False):
        raise ConfigError("rotary_value is true in config.json; Hanmo reads RoFormers that do not rotate values")
    positions = data.get("max_position_embeddings", 1536)
    config = bert.huggingface_encoder(data, family="roformer", position="rotary", positions=positions)
    # Only RoFormer-Sim has a pooler, a linear one (JunnYu/RoFormer_pytorch, examples/dummpy/test_sim.py).
    return replace(config, pool=data.get("pooler_activation", "linear"), nsp=False)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    data = bert.huggingface_original("roformer", "RoFormer", embedding_size=True)(config) | {"rotary_value": False}
    return data if config.pool == "none" else data | {"pooler_activation": config.pool}


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    embedding = {ours: theirs for ours, theirs in bert.EMBEDDING.items() if "position" not in ours}
    return [
        *layers(torch_pair, embedding, theirs="roformer.embeddings"),
        *torch_pair("encoder.embedding.project", "roformer.embeddings_project"),
        *blocks(config, bert.huggingface_block, "roformer.encoder.layer.{}"),
        *torch_pair("pooler.dense", "roformer.pooler.dense"),
        *bert.huggingface_mlm(config),
    ]


ROFORMER = Family(
    "roformer",
    tensorflow=Names(
        config=_config,
        original=partial(write_transformer, gelu="gelu_erf"),
        rows=bert.rows,
        sizes=bert.google_sizes("bert"),
        heads=bert.HEADS,
        marks=("bert/encoder/layer_0/attention/self/query/bias",),
        absent=("bert/embeddings/position_embeddings",),
        prefix="bert/",
    ),
    huggingface=bert.huggingface_names(
        "roformer",
        config=_huggingface_config,
        original=_huggingface_original,
        rows=_huggingface_rows,
        heads={"pool": "roformer.pooler.dense.weight", "mlm": "cls.predictions.bias"},
        dropped={r"^(roformer\.)?encoder\.embed_positions\.weight$": "a fixed table"},
        repeats=bert.huggingface_repeats("roformer"),
        made={"roformer.encoder.embed_positions.weight": "sines_then_cosines"},
    ),
)
ROFORMER_V2 = Family(
    "roformer_v2",
    tensorflow=Names(
        config=_v2_config,
        original=partial(write_transformer, gelu="gelu_erf"),
        rows=_v2_rows,
        sizes=bert.google_sizes("bert"),
        absent=("bert/encoder/layer_0/attention/self/query/bias",),
        prefix="bert/",
    ),
)
