"""RoFormer and RoFormerV2 (Zhuiyi): BERT with rotary positions; V2 without biases, its RMS norms without weights.

Both were trained with bert4keras itself, so its numbers are the original's: exact gelu, eps 1e-7 in the blocks.
"""

from dataclasses import replace
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families.bert import (
    BERT,
    HEADS,
    HUGGINGFACE_DROPPED,
    encoder_config,
    huggingface_embedding,
    huggingface_encoder,
    huggingface_layer,
    huggingface_mlm,
    huggingface_original,
    huggingface_repeats,
    huggingface_sizes,
    rows,
)
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Row,
    blocks,
    row,
    torch_pair,
    write_transformer,
)


def _config(data: Config) -> ModelConfig:
    # The number of positions limits nothing here, but other code builds a table of them.
    return encoder_config(
        data,
        family="roformer",
        gelu="gelu_erf",
        position="rotary",
        positions=data.get("max_position_embeddings", 512),
        norm_eps=1e-7,
    )


def _v2_config(data: Config) -> ModelConfig:
    config = encoder_config(
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
    return [
        *[
            r
            for r in rows(config)
            if r.theirs.endswith(("kernel", "embeddings"))
            and not r.ours[0].startswith("pooler")
            and not r.theirs.startswith("cls/")
        ],
        row("output.project.weight", "cls/predictions/transform/dense/kernel", "transpose"),
    ]


def _huggingface_config(data: Config) -> ModelConfig:
    if data.get("rotary_value", False):
        raise ConfigError("rotary_value is true in config.json; Hanmo reads RoFormers that do not rotate values")
    positions = data.get("max_position_embeddings", 1536)
    config = huggingface_encoder(data, family="roformer", position="rotary", positions=positions)
    # Only RoFormer-Sim has a pooler, a linear one (JunnYu/RoFormer_pytorch, examples/dummpy/test_sim.py).
    return replace(config, pool=data.get("pooler_activation", "linear"), nsp=False)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    data = huggingface_original("roformer", "RoFormer")(config)
    data |= {"embedding_size": config.main.embedding_size, "rotary_value": False}
    return data if config.pool == "none" else data | {"pooler_activation": config.pool}


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    return [
        *[r for r in huggingface_embedding("encoder", "roformer.embeddings") if "position" not in r.theirs],
        *torch_pair("encoder.embedding.project", "roformer.embeddings_project"),
        *blocks(config, huggingface_layer, "roformer.encoder.layer.{}"),
        *torch_pair("pooler.dense", "roformer.pooler.dense"),
        *huggingface_mlm(config),
    ]


assert BERT.tensorflow is not None
_SIZES = BERT.tensorflow.sizes
ROFORMER = Family(
    "roformer",
    tensorflow=Names(
        config=_config,
        original=lambda config: write_transformer(config, gelu="gelu_erf"),
        rows=rows,
        sizes=_SIZES,
        heads=HEADS,
        marks=("bert/encoder/layer_0/attention/self/query/bias",),
        absent=("bert/embeddings/position_embeddings",),
        prefix="bert/",
    ),
    huggingface=Names(
        config=_huggingface_config,
        original=_huggingface_original,
        rows=_huggingface_rows,
        sizes=huggingface_sizes("roformer"),
        heads={"pool": "roformer.pooler.dense.weight", "mlm": "cls.predictions.bias"},
        dropped=HUGGINGFACE_DROPPED | {r"^(roformer\.)?encoder\.embed_positions\.weight$": "a fixed table"},
        repeats=huggingface_repeats("roformer"),
        made={"roformer.encoder.embed_positions.weight": "sines_then_cosines"},
        model_type="roformer",
        prefix="roformer.",
    ),
)
ROFORMER_V2 = Family(
    "roformer_v2",
    tensorflow=Names(
        config=_v2_config,
        original=lambda config: write_transformer(config, gelu="gelu_erf"),
        rows=_v2_rows,
        sizes=_SIZES,
        absent=("bert/encoder/layer_0/attention/self/query/bias",),
        prefix="bert/",
    ),
)
