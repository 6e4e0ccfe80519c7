"""ALBERT (google-research/albert): one block for all layers; gelu by tanh, norms with eps 1e-12.

"albert_unshared" reads the same files into blocks of their own, which then may be trained apart.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import bert
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Pair,
    Row,
    Sizes,
    google,
    layers,
    row,
    torch_pair,
    write_transformer,
)

GROUP = "bert/encoder/transformer/group_0/inner_group_0"
_HUGGINGFACE_GROUP = "albert.encoder.albert_layer_groups.0.albert_layers.0"
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
_ONE = {"num_hidden_groups": 1, "inner_group_num": 1}


def _check(data: Config) -> None:
    # Every released ALBERT has one group of one layer; more would need another table.
    for key, value in _ONE.items():
        if data.get(key, value) != value:
            raise ConfigError(f"{key} is {data[key]!r} in config.json; Hanmo reads ALBERT with 1")


def _config(data: Config, *, family: str) -> ModelConfig:
    _check(data)
    return bert.encoder_config(data, family=family, gelu="gelu_tanh", shared_layers=family == "albert")


def _original(config: ModelConfig) -> dict[str, Any]:
    return write_transformer(config, gelu="gelu_tanh") | _ONE


def _layers(config: ModelConfig, make: Pair, names: dict[str, str], theirs: str) -> list[Row]:
    """Make the rows of the one shared block, or copy it into every block of a model that trains them apart."""
    if config.main.shared_layers:
        return layers(make, names, "encoder.blocks.0", theirs)
    each = [layers(make, names, f"encoder.blocks.{i}", theirs) for i in range(config.main.num_layers)]
    return [
        replace(same[0], ours=tuple(r.ours[0] for r in same), how=f"copy_{same[0].how}")
        for same in zip(*each, strict=True)
    ]


def _rows(config: ModelConfig) -> list[Row]:
    return [
        *layers(google, bert.EMBEDDING, theirs="bert.embeddings"),
        *google("encoder.embedding.project", "bert.encoder.embedding_hidden_mapping_in"),
        *_layers(config, google, _BLOCK, GROUP),
        *bert.google_heads(),
    ]


def _huggingface_config(data: Config, *, family: str) -> ModelConfig:
    _check(data)
    data = {"embedding_size": 128, "hidden_act": "gelu_new"} | dict(data)
    if data["embedding_size"] == data.get("hidden_size"):
        raise ConfigError(
            f"embedding_size and hidden_size are both {data['embedding_size']} in config.json; Hugging Face maps "
            f"embeddings even then, and Hanmo reads ALBERT with embeddings narrower than its hidden_size"
        )
    return bert.huggingface_encoder(data, family=family, shared_layers=family == "albert")


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    return bert.huggingface_original("albert", "Albert", embedding_size=True)(config) | _ONE


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    bert.check_tied(config)
    return [
        *layers(torch_pair, bert.EMBEDDING, theirs="albert.embeddings"),
        *torch_pair("encoder.embedding.project", "albert.encoder.embedding_hidden_mapping_in"),
        *_layers(config, torch_pair, _HUGGINGFACE_BLOCK, _HUGGINGFACE_GROUP),
        *torch_pair("pooler.dense", "albert.pooler"),
        *torch_pair("pooler.nsp", "sop_classifier.classifier"),
        *layers(torch_pair, {"output.dense": "dense", "output.norm": "LayerNorm"}, theirs="predictions"),
        row("output.bias", "predictions.bias"),
    ]


def _family(name: str, *, absent: bool, model_type: str) -> Family:
    """Make a family; absent: no file is recognised as one, since its files are ALBERT's: it is asked for by name."""
    token, huggingface_token = "bert/embeddings/word_embeddings", "albert.embeddings.word_embeddings.weight"
    return Family(
        name,
        tensorflow=Names(
            config=partial(_config, family=name),
            original=_original,
            rows=_rows,
            sizes=replace(
                bert.google_sizes("bert"),
                layer="bert/encoder/transformer/group_{}/",
                query=f"{GROUP}/attention_1/self/query/kernel",
                feed_forward=f"{GROUP}/ffn_1/intermediate/dense/kernel",
            ),
            heads=bert.HEADS,
            absent=(token,) if absent else (),
            prefix="bert/",
        ),
        huggingface=bert.huggingface_names(
            "albert",
            config=partial(_huggingface_config, family=name),
            original=_huggingface_original,
            rows=_huggingface_rows,
            sizes=Sizes(
                token=huggingface_token,
                position="albert.embeddings.position_embeddings.weight",
                segment="albert.embeddings.token_type_embeddings.weight",
                layer="albert.encoder.albert_layer_groups.{}.",
                query=f"{_HUGGINGFACE_GROUP}.attention.query.weight",
                feed_forward=f"{_HUGGINGFACE_GROUP}.ffn.weight",
                columns=False,
            ),
            heads={
                "pool": "albert.pooler.weight",
                "nsp": "sop_classifier.classifier.weight",
                "mlm": "predictions.bias",
            },
            absent=(huggingface_token,) if absent else (),
            dropped={r"^predictions\.decoder\.(weight|bias)$": "the same tensor as the embedding"},
            repeats={"predictions.decoder.weight": huggingface_token, "predictions.decoder.bias": "predictions.bias"},
            model_type=model_type,
        ),
    )


ALBERT = _family("albert", absent=False, model_type="albert")
ALBERT_UNSHARED = _family("albert_unshared", absent=True, model_type="")
