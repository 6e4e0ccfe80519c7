"""BERT (google-research/bert): gelu by tanh, norms with eps 1e-12; also RoBERTa-wwm, which is a BERT.

RoBERTa, NEZHA, RoFormer, ALBERT, ELECTRA and GPT build on the names and functions here.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Pair,
    Row,
    Sizes,
    activation,
    blocks,
    google,
    layers,
    read,
    row,
    torch_pair,
    transformer,
    write_transformer,
)

EMBEDDING = {
    "token": "word_embeddings",
    "encoder.embedding.position": "position_embeddings",
    "encoder.embedding.segment": "token_type_embeddings",
    "encoder.embedding.norm": "LayerNorm",
}
BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_post": "attention.output.LayerNorm",
    "feed_forward.input": "intermediate.dense",
    "feed_forward.output": "output.dense",
    "feed_forward_post": "output.LayerNorm",
}
MLM_HEAD = {"output.dense": "cls.predictions.transform.dense", "output.norm": "cls.predictions.transform.LayerNorm"}
HEADS = {
    "pool": "bert/pooler/dense/kernel",
    "nsp": "cls/seq_relationship/output_weights",
    "mlm": "cls/predictions/output_bias",
}
google_block: Pair = partial(layers, google, BLOCK)
huggingface_block: Pair = partial(layers, torch_pair, BLOCK)


def encoder_config(data: Config, *, family: str, gelu: str, **changes: Any) -> ModelConfig:
    """Read a BERT-like encoder with every head its checkpoints may have."""
    return ModelConfig(
        family=family,
        vocab_size=read(data, "vocab_size", int),
        encoder=transformer(data, gelu=gelu, **changes),
        output="mlm",
        pool="tanh",
        nsp=True,
        head_activation=activation(data, gelu),
        initializer=float(data.get("initializer_range", 0.02)),
    )


def google_sizes(prefix: str) -> Sizes:
    """Name the tensors that tell sizes, in Google's names."""
    return Sizes(
        token=f"{prefix}/embeddings/word_embeddings",
        position=f"{prefix}/embeddings/position_embeddings",
        segment=f"{prefix}/embeddings/token_type_embeddings",
        layer=f"{prefix}/encoder/layer_{{}}/",
        query=f"{prefix}/encoder/layer_0/attention/self/query/kernel",
        feed_forward=f"{prefix}/encoder/layer_0/intermediate/dense/kernel",
    )


def google_heads() -> list[Row]:
    """Make the rows of pooler, NSP and MLM heads; NSP's weights are stored [2, hidden_size]."""
    return [
        *google("pooler.dense", "bert.pooler.dense"),
        row("pooler.nsp.weight", "cls/seq_relationship/output_weights"),
        row("pooler.nsp.bias", "cls/seq_relationship/output_bias"),
        *layers(google, MLM_HEAD),
        row("output.bias", "cls/predictions/output_bias"),
    ]


def rows(config: ModelConfig) -> list[Row]:
    """Make the table of a BERT in Google's names."""
    return [
        *layers(google, EMBEDDING, theirs="bert.embeddings"),
        *google("encoder.embedding.project", "bert.encoder.embedding_hidden_mapping_in"),
        *blocks(config, google_block, "bert.encoder.layer_{}"),
        *google_heads(),
    ]


def huggingface_names(prefix: str, *, dropped: Mapping[str, str] | None = None, **others: Any) -> Names:
    """Make a table of Hugging Face's names; dropped: beyond those of every encoder; others: fields of `Names`."""
    sizes = Sizes(
        token=f"{prefix}.embeddings.word_embeddings.weight",
        position=f"{prefix}.embeddings.position_embeddings.weight",
        segment=f"{prefix}.embeddings.token_type_embeddings.weight",
        layer=f"{prefix}.encoder.layer.{{}}.",
        query=f"{prefix}.encoder.layer.0.attention.self.query.weight",
        feed_forward=f"{prefix}.encoder.layer.0.intermediate.dense.weight",
        columns=False,
    )
    known = {
        r"(^|.*\.)position_ids$": "the numbers 0, 1, 2, …",
        r"^cls\.predictions\.decoder\.(weight|bias)$": "the same tensor as the embedding and cls.predictions.bias",
    }
    values: dict[str, Any] = {
        "sizes": sizes,
        "model_type": prefix,
        "prefix": f"{prefix}.",
        "dropped": known | dict(dropped or {}),
    }
    return Names(**values | others)


def huggingface_repeats(prefix: str, head: str = "cls.predictions") -> dict[str, str]:
    """Map the tensors of an MLM head that a file may hold twice to those that they repeat."""
    return {
        f"{head}.decoder.weight": f"{prefix}.embeddings.word_embeddings.weight",
        f"{head}.decoder.bias": f"{head}.bias",
    }


def huggingface_mlm(config: ModelConfig) -> list[Row]:
    """Make the rows of the MLM head in Hugging Face's names; raises ConfigError if its output is not tied."""
    check_tied(config)
    return [*layers(torch_pair, MLM_HEAD), row("output.bias", "cls.predictions.bias")]


def check_tied(config: ModelConfig) -> None:
    """Raise ConfigError if an MLM head has an output matrix of its own, which no released encoder has."""
    if config.output == "mlm" and not config.tied:
        raise ConfigError(
            "tie_word_embeddings is false in config.json; Hanmo reads MLM heads whose output is the embedding: "
            "set it to true if both are the same, or leave the head out of the file"
        )


def huggingface_rows(config: ModelConfig) -> list[Row]:
    """Make the table of a BERT in Hugging Face's names."""
    return [
        *layers(torch_pair, EMBEDDING, theirs="bert.embeddings"),
        *blocks(config, huggingface_block, "bert.encoder.layer.{}"),
        *torch_pair("pooler.dense", "bert.pooler.dense"),
        *torch_pair("pooler.nsp", "cls.seq_relationship"),
        *huggingface_mlm(config),
    ]


def huggingface_encoder(data: Config, *, family: str, **changes: Any) -> ModelConfig:
    """Read the parts of Hugging Face's config.json that all BERT-like encoders have in common."""
    kind = data.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ConfigError(f"position_embedding_type is {kind!r} in config.json; Hanmo reads 'absolute' ones")
    if data.get("add_cross_attention", False):
        raise ConfigError("add_cross_attention is true in config.json; Hanmo reads encoders that stand alone")
    eps = float(data.get("layer_norm_eps", 1e-12))
    mask = "causal" if data.get("is_decoder", False) else "full"
    changes = {"norm_eps": eps, "embedding_norm_eps": eps, "mask": mask} | changes
    config = encoder_config(data, family=family, gelu="gelu_erf", **changes)
    return replace(config, head_norm_eps=eps, tied=data.get("tie_word_embeddings", True))


def huggingface_original(
    model_type: str, word: str, *, embedding_size: bool = False
) -> Callable[[ModelConfig], dict[str, Any]]:
    """Make the writer of a BERT-like config.json for Hugging Face.

    word: what its classes begin with.   embedding_size: whether embeddings may be narrower than the stack.
    """

    def write(config: ModelConfig) -> dict[str, Any]:
        stack = config.main
        data = write_transformer(config, gelu="gelu_erf")
        # Its code derives these from the hidden_size; a reader would not miss them.
        for key in ("attention_head_size", "attention_key_size", "shared_segment_embeddings", "embedding_size"):
            data.pop(key, None)
        if embedding_size:
            data["embedding_size"] = stack.embedding_size
        data["hidden_act"] = {"gelu_erf": "gelu", "gelu_tanh": "gelu_new"}.get(stack.activation, stack.activation)
        if stack.mask == "causal":
            data["is_decoder"] = True
        return data | {
            "model_type": model_type,
            "architectures": [word + _class(config)],
            "layer_norm_eps": stack.norm_eps,
            "pad_token_id": 0,
        }

    return write


def _class(config: ModelConfig) -> str:
    if config.discriminator or (config.output == "mlm" and config.nsp):
        return "ForPreTraining"
    return "ForMaskedLM" if config.output == "mlm" else "Model"


BERT = Family(
    "bert",
    tensorflow=Names(
        config=partial(encoder_config, family="bert", gelu="gelu_tanh"),
        original=partial(write_transformer, gelu="gelu_tanh"),
        rows=rows,
        sizes=google_sizes("bert"),
        heads=HEADS,
        marks=("bert/embeddings/position_embeddings",),
        prefix="bert/",
    ),
    huggingface=huggingface_names(
        "bert",
        config=partial(huggingface_encoder, family="bert"),
        original=huggingface_original("bert", "Bert"),
        rows=huggingface_rows,
        marks=("bert.embeddings.position_embeddings.weight",),
        heads={
            "pool": "bert.pooler.dense.weight",
            "nsp": "cls.seq_relationship.weight",
            "mlm": "cls.predictions.bias",
        },
        repeats=huggingface_repeats("bert"),
    ),
)
