"""ALBERT (google-research/albert): one block for all depths; gelu by tanh, norms with eps 1e-12.

"albert_unshared" reads the same files into blocks of their own, which then may be trained apart.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families.bert import (
    HEADS,
    HUGGINGFACE_DROPPED,
    check_tied,
    encoder_config,
    google_embedding,
    google_heads,
    huggingface_embedding,
    huggingface_encoder,
    huggingface_original,
)
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Row,
    Sizes,
    dense,
    norm,
    query_key_value,
    row,
    torch_pair,
    write_transformer,
)

GROUP = "bert/encoder/transformer/group_0/inner_group_0"
HUGGINGFACE_GROUP = "albert.encoder.albert_layer_groups.0.albert_layers.0"


def _check(data: Config) -> None:
    # Every released ALBERT has one group of one layer; more would need another table.
    for key in ("num_hidden_groups", "inner_group_num"):
        if data.get(key, 1) != 1:
            raise ConfigError(f"{key} is {data[key]!r} in config.json; Hanmo reads ALBERT with 1")


def _config(data: Config, *, shared: bool) -> ModelConfig:
    _check(data)
    family = "albert" if shared else "albert_unshared"
    return encoder_config(data, family=family, gelu="gelu_tanh", shared_layers=shared)


def _layer(ours: str) -> list[Row]:
    attention = f"{GROUP}/attention_1"
    feed_forward = f"{GROUP}/ffn_1/intermediate"
    return [
        *query_key_value(dense, f"{ours}.attention", f"{attention}/self/{{}}"),
        *dense(f"{ours}.attention.output", f"{attention}/output/dense"),
        *norm(f"{ours}.attention_post", f"{GROUP}/LayerNorm"),
        *dense(f"{ours}.feed_forward.input", f"{feed_forward}/dense"),
        *dense(f"{ours}.feed_forward.output", f"{feed_forward}/output/dense"),
        *norm(f"{ours}.feed_forward_post", f"{GROUP}/LayerNorm_1"),
    ]


def _layers(config: ModelConfig, layer: Callable[[str], list[Row]]) -> list[Row]:
    """Make the rows of the one shared block, or copy it into every block of a model that trains them apart."""
    if config.main.shared_layers:
        return layer("encoder.blocks.0")
    copies = zip(*[layer(f"encoder.blocks.{i}") for i in range(config.main.num_layers)], strict=True)
    return [replace(same[0], ours=tuple(r.ours[0] for r in same), how=f"copy_{same[0].how}") for same in copies]


def _rows(config: ModelConfig) -> list[Row]:
    return [
        *google_embedding("encoder", "bert/embeddings", "bert/encoder/embedding_hidden_mapping_in"),
        *_layers(config, _layer),
        *google_heads(),
    ]


def _huggingface_config(data: Config, *, shared: bool) -> ModelConfig:
    _check(data)
    data = {"embedding_size": 128, "hidden_act": "gelu_new"} | dict(data)
    if data["embedding_size"] == data.get("hidden_size"):
        raise ConfigError(
            f"embedding_size and hidden_size are both {data['embedding_size']} in config.json; Hugging Face maps "
            f"embeddings even then, and Hanmo reads ALBERT with embeddings narrower than its hidden_size"
        )
    return huggingface_encoder(data, family="albert" if shared else "albert_unshared", shared_layers=shared)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    data = huggingface_original("albert", "Albert")(config)
    return {"embedding_size": config.main.embedding_size, "num_hidden_groups": 1, "inner_group_num": 1} | data


def _huggingface_layer(ours: str) -> list[Row]:
    theirs = HUGGINGFACE_GROUP
    return [
        *query_key_value(torch_pair, f"{ours}.attention", f"{theirs}.attention.{{}}"),
        *torch_pair(f"{ours}.attention.output", f"{theirs}.attention.dense"),
        *torch_pair(f"{ours}.attention_post", f"{theirs}.attention.LayerNorm"),
        *torch_pair(f"{ours}.feed_forward.input", f"{theirs}.ffn"),
        *torch_pair(f"{ours}.feed_forward.output", f"{theirs}.ffn_output"),
        *torch_pair(f"{ours}.feed_forward_post", f"{theirs}.full_layer_layer_norm"),
    ]


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    check_tied(config)
    return [
        *huggingface_embedding("encoder", "albert.embeddings"),
        *torch_pair("encoder.embedding.project", "albert.encoder.embedding_hidden_mapping_in"),
        *_layers(config, _huggingface_layer),
        *torch_pair("pooler.dense", "albert.pooler"),
        *torch_pair("pooler.nsp", "sop_classifier.classifier"),
        *torch_pair("output.dense", "predictions.dense"),
        *torch_pair("output.norm", "predictions.LayerNorm"),
        row("output.bias", "predictions.bias"),
    ]


_SIZES = Sizes(
    token="bert/embeddings/word_embeddings",
    position="bert/embeddings/position_embeddings",
    segment="bert/embeddings/token_type_embeddings",
    layer="bert/encoder/transformer/group_{}/",
    query=f"{GROUP}/attention_1/self/query/kernel",
    feed_forward=f"{GROUP}/ffn_1/intermediate/dense/kernel",
)


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_transformer(config, gelu="gelu_tanh") | {"num_hidden_groups": 1, "inner_group_num": 1}


def _huggingface(*, shared: bool) -> Names:
    token = "albert.embeddings.word_embeddings.weight"
    return Names(
        config=partial(_huggingface_config, shared=shared),
        original=_huggingface_original,
        rows=_huggingface_rows,
        sizes=Sizes(
            token=token,
            position="albert.embeddings.position_embeddings.weight",
            segment="albert.embeddings.token_type_embeddings.weight",
            layer="albert.encoder.albert_layer_groups.{}.",
            query=f"{HUGGINGFACE_GROUP}.attention.query.weight",
            feed_forward=f"{HUGGINGFACE_GROUP}.ffn.weight",
            columns=False,
        ),
        heads={"pool": "albert.pooler.weight", "nsp": "sop_classifier.classifier.weight", "mlm": "predictions.bias"},
        absent=() if shared else (token,),
        dropped=HUGGINGFACE_DROPPED | {r"^predictions\.decoder\.(weight|bias)$": "the same tensor as the embedding"},
        repeats={"predictions.decoder.weight": token, "predictions.decoder.bias": "predictions.bias"},
        model_type="albert" if shared else "",
        prefix="albert.",
    )


ALBERT = Family(
    "albert",
    tensorflow=Names(
        config=partial(_config, shared=True),
        original=_write,
        rows=_rows,
        sizes=_SIZES,
        heads=HEADS,
        prefix="bert/",
    ),
    huggingface=_huggingface(shared=True),
)
ALBERT_UNSHARED = Family(
    "albert_unshared",
    tensorflow=Names(
        config=partial(_config, shared=False),
        original=_write,
        rows=_rows,
        sizes=_SIZES,
        heads=HEADS,
        prefix="bert/",
        absent=(_SIZES.token,),  # its files are ALBERT's; it is asked for by name
    ),
    huggingface=_huggingface(shared=False),
)
