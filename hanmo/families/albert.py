"""ALBERT (google-research/albert): one block for all layers; gelu by tanh, norms with eps 1e-12.

"albert_unshared" reads the same files into blocks of their own, which then may be trained apart.
"""

from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import bert, keys
from hanmo.families.family import TENSORFLOW, Config, Family, Names

GROUP = "bert/encoder/transformer/group_0/inner_group_0"
_BLOCK = {
    "attention.query": "attention_1.self.query",
    "attention.key": "attention_1.self.key",
    "attention.value": "attention_1.self.value",
    "attention.output": "attention_1.output.dense",
    "attention_post": "LayerNorm",
    "feed_forward.input": "ffn_1.intermediate.dense",
    "feed_forward.output": "ffn_1.intermediate.output.dense",
    "feed_forward_post": "LayerNorm_1",
}
_HUGGINGFACE_BLOCK = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.output": "attention.dense",
    "attention_post": "attention.LayerNorm",
    "feed_forward.input": "ffn",
    "feed_forward.output": "ffn_output",
    "feed_forward_post": "full_layer_layer_norm",
}
_NAMES = {
    **bert.names("bert", project=bert.PROJECT),
    "encoder.blocks.{}": (GROUP.replace("/", "."), _BLOCK),
    **bert.GOOGLE_HEADS,
}
_HUGGINGFACE_NAMES = {
    **bert.names("albert", project=bert.PROJECT),
    "encoder.blocks.{}": ("albert.encoder.albert_layer_groups.0.albert_layers.0", _HUGGINGFACE_BLOCK),
    "pooler.dense": "albert.pooler",
    "pooler.nsp": "sop_classifier.classifier",
    "output.dense": "predictions.dense",
    "output.norm": "predictions.LayerNorm",
    "output.bias": "predictions.bias",
}
_ONE: dict[str, Any] = {"num_hidden_groups": 1, "inner_group_num": 1}


def _config(data: Config, *, family: str, huggingface: bool = False) -> ModelConfig:
    # Every released ALBERT has one group of one layer; more would need another table.
    for key, value in _ONE.items():
        if data.get(key, value) != value:
            raise ConfigError(f"{key} is {data[key]!r} in config.json; Hanmo reads ALBERT with 1")
    shared: dict[str, Any] = {"family": family, "shared_layers": family == "albert"}
    if not huggingface:
        return bert.encoder_config(data, gelu="gelu_tanh", **shared)
    data = {"embedding_size": 128, "hidden_act": "gelu_new"} | dict(data)
    if data["embedding_size"] == data.get("hidden_size"):
        raise ConfigError(
            f"embedding_size and hidden_size are both {data['embedding_size']} in config.json; Hugging Face maps "
            f"embeddings even then, and Hanmo reads ALBERT with embeddings narrower than its hidden_size"
        )
    return bert.huggingface_config(data, **shared)


def _family(name: str, *, absent: bool, model_type: str) -> Family:
    """Make a family; absent: no file is recognised as one, since its files are ALBERT's: it is asked for by name."""
    return Family(
        name,
        tensorflow=Names.of(
            TENSORFLOW,
            _NAMES,
            config=partial(_config, family=name),
            original=lambda config: keys.write_model(config, gelu="gelu_tanh") | _ONE,
            absent=("bert/embeddings/word_embeddings",) if absent else (),
            prefix="bert/",
        ),
        huggingface=bert.huggingface_names(
            "albert",
            _HUGGINGFACE_NAMES,
            head="predictions",
            config=partial(_config, family=name, huggingface=True),
            original=partial(
                bert.huggingface_original, model_type="albert", word="Albert", embedding_size=True, **_ONE
            ),
            absent=("albert.embeddings.word_embeddings.weight",) if absent else (),
            model_type=model_type,
        ),
    )


ALBERT = _family("albert", absent=False, model_type="albert")
ALBERT_UNSHARED = _family("albert_unshared", absent=True, model_type="")
