"""RoFormer and RoFormerV2 (Zhuiyi): BERT with rotary positions; V2 without biases, its RMS norms without weights.

Both were trained with bert4keras itself, so its numbers are the original's: exact gelu, eps 1e-7 in the blocks.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import bert, keys
from hanmo.families.family import TENSORFLOW, TORCH, Config, Family, Names, auto_map, code_files

_HUGGINGFACE_NAMES = bert.names("roformer", project="embeddings_project", position=False)
_HUGGINGFACE_NAMES |= {"pooler.dense": "roformer.pooler.dense", **bert.MLM}


def _config(data: Config) -> ModelConfig:
    # The number of positions limits nothing here, but other code builds a table of them.
    return bert.encoder_config(data, family="roformer", gelu="gelu_erf", position="rotary", norm_eps=1e-7)


def _v2_config(data: Config) -> ModelConfig:
    fixed: dict[str, Any] = dict.fromkeys(("norm_scale", "norm_bias", "bias"), False)
    fixed |= {"position": "rotary", "positions": None, "norm": "rms", "norm_eps": 1e-7, "embedding_norm_eps": 1e-7}
    config = bert.encoder_config(data, family="roformer_v2", gelu="gelu_erf", **fixed)
    return replace(config, output="lm", pool="none", nsp=False)


def _huggingface_config(data: Config) -> ModelConfig:
    if data.get("rotary_value", False):
        raise ConfigError("rotary_value is true in config.json; Hanmo reads RoFormers that do not rotate values")
    data = {"max_position_embeddings": 1536} | dict(data)
    config = bert.huggingface_config(data, family="roformer", position="rotary")
    # Only RoFormer-Sim has a pooler, a linear one (JunnYu/RoFormer_pytorch, examples/dummpy/test_sim.py).
    return replace(config, pool=data.get("pooler_activation", "linear"), nsp=False)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    pooler = {} if config.pool == "none" else {"pooler_activation": config.pool}
    names = {"model_type": "roformer", "word": "RoFormer"}
    return bert.huggingface_original(config, **names, embedding_size=True, rotary_value=False, **pooler)


def _v2_original(config: ModelConfig) -> dict[str, Any]:
    stack = config.main
    if stack.embedding_size != stack.hidden_size:
        raise ConfigError(
            f"embedding_size is {stack.embedding_size}; the code for transformers has {stack.hidden_size}"
        )
    return keys.write_model(config, gelu="gelu_erf") | {
        "model_type": "roformer_v2",
        "architectures": ["RoFormerV2ForMaskedLM" if config.output == "lm" else "RoFormerV2Model"],
        **auto_map("roformer_v2", "RoFormerV2", AutoModel="Model", AutoModelForMaskedLM="ForMaskedLM"),
        "layer_norm_eps": stack.norm_eps,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    }


ROFORMER = Family(
    "roformer",
    tensorflow=Names.of(
        TENSORFLOW,
        bert.GOOGLE_NAMES,
        config=_config,
        original=partial(keys.write_model, gelu="gelu_erf"),
        marks=("bert/encoder/layer_0/attention/self/query/bias",),
        absent=("bert/embeddings/position_embeddings",),
        prefix="bert/",
    ),
    huggingface=bert.huggingface_names(
        "roformer",
        _HUGGINGFACE_NAMES,
        config=_huggingface_config,
        original=_huggingface_original,
        dropped={r"^(roformer\.)?encoder\.embed_positions\.weight$": "a fixed table"},
        made={"roformer.encoder.embed_positions.weight": "sines_then_cosines"},
    ),
)
ROFORMER_V2 = Family(
    "roformer_v2",
    tensorflow=Names.of(
        replace(TENSORFLOW, dense=("/kernel",), norm=()),
        bert.names("bert", "layer_{}", project=bert.PROJECT) | {"output.project": "cls.predictions.transform.dense"},
        config=_v2_config,
        original=partial(keys.write_model, gelu="gelu_erf"),
        absent=("bert/encoder/layer_0/attention/self/query/bias",),
        prefix="bert/",
    ),
    # transformers has no such network; the names are those of hanmo/assets/transformers/modeling_roformer_v2.py.
    huggingface=Names.of(
        replace(TORCH, dense=(".weight",), norm=()),
        bert.names("roformer", position=False),
        config=_v2_config,
        original=_v2_original,
        absent=("roformer.encoder.layer.0.attention.self.query.bias",),
        repeats={"lm_head.weight": "roformer.embeddings.word_embeddings.weight"},
        model_type="roformer_v2",
        prefix="roformer.",
        code=code_files("roformer_v2"),
    ),
)
