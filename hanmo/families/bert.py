"""BERT (google-research/bert): gelu by tanh, norms with eps 1e-12; also RoBERTa-wwm, which is a BERT.

Its kin (RoBERTa, NEZHA, RoFormer, ALBERT, ELECTRA, GPT) build on the functions here.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Row,
    Sizes,
    activation,
    blocks,
    dense,
    norm,
    query_key_value,
    read,
    row,
    torch_pair,
    transformer,
    write_transformer,
)

HEADS = {
    "pool": "bert/pooler/dense/kernel",
    "nsp": "cls/seq_relationship/output_weights",
    "mlm": "cls/predictions/output_bias",
}
HUGGINGFACE_DROPPED = {
    r"(^|.*\.)position_ids$": "the numbers 0, 1, 2, …",
    r"^cls\.predictions\.decoder\.(weight|bias)$": "the same tensor as the embedding and cls.predictions.bias",
}


def huggingface_sizes(prefix: str) -> Sizes:
    """Name the tensors that tell sizes, in Hugging Face's names; a file without a position table has none to tell."""
    return Sizes(
        token=f"{prefix}.embeddings.word_embeddings.weight",
        position=f"{prefix}.embeddings.position_embeddings.weight",
        segment=f"{prefix}.embeddings.token_type_embeddings.weight",
        layer=f"{prefix}.encoder.layer.{{}}.",
        query=f"{prefix}.encoder.layer.0.attention.self.query.weight",
        feed_forward=f"{prefix}.encoder.layer.0.intermediate.dense.weight",
        columns=False,
    )


def huggingface_repeats(prefix: str) -> dict[str, str]:
    """Say which tensors a file may hold twice, in Hugging Face's names of an MLM head."""
    return {
        "cls.predictions.decoder.weight": f"{prefix}.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


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


def google_embedding(ours: str, theirs: str, project: str) -> list[Row]:
    """Make the rows of token, segment, position embeddings, their norm and the mapping to the hidden_size."""
    return [
        row("token.weight", f"{theirs}/word_embeddings"),
        row(f"{ours}.embedding.position.weight", f"{theirs}/position_embeddings"),
        row(f"{ours}.embedding.segment.weight", f"{theirs}/token_type_embeddings"),
        *norm(f"{ours}.embedding.norm", f"{theirs}/LayerNorm"),
        *dense(f"{ours}.embedding.project", project),
    ]


def google_layer(ours: str, theirs: str) -> list[Row]:
    """Make the rows of one post-norm block in Google's names."""
    return [
        *query_key_value(dense, f"{ours}.attention", f"{theirs}/attention/self/{{}}"),
        *dense(f"{ours}.attention.output", f"{theirs}/attention/output/dense"),
        *norm(f"{ours}.attention_post", f"{theirs}/attention/output/LayerNorm"),
        *dense(f"{ours}.feed_forward.input", f"{theirs}/intermediate/dense"),
        *dense(f"{ours}.feed_forward.output", f"{theirs}/output/dense"),
        *norm(f"{ours}.feed_forward_post", f"{theirs}/output/LayerNorm"),
    ]


def google_heads() -> list[Row]:
    """Make the rows of pooler, NSP and MLM heads; NSP's weights are stored [2, hidden_size]."""
    return [
        *dense("pooler.dense", "bert/pooler/dense"),
        row("pooler.nsp.weight", "cls/seq_relationship/output_weights"),
        row("pooler.nsp.bias", "cls/seq_relationship/output_bias"),
        *dense("output.dense", "cls/predictions/transform/dense"),
        *norm("output.norm", "cls/predictions/transform/LayerNorm"),
        row("output.bias", "cls/predictions/output_bias"),
    ]


def rows(config: ModelConfig) -> list[Row]:
    """Make the table of a BERT in Google's names."""
    return [
        *google_embedding("encoder", "bert/embeddings", "bert/encoder/embedding_hidden_mapping_in"),
        *blocks(config, google_layer, "bert/encoder/layer_{}"),
        *google_heads(),
    ]


def huggingface_layer(ours: str, theirs: str) -> list[Row]:
    """Make the rows of one post-norm block in Hugging Face's names."""
    return [
        *query_key_value(torch_pair, f"{ours}.attention", f"{theirs}.attention.self.{{}}"),
        *torch_pair(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        *torch_pair(f"{ours}.attention_post", f"{theirs}.attention.output.LayerNorm"),
        *torch_pair(f"{ours}.feed_forward.input", f"{theirs}.intermediate.dense"),
        *torch_pair(f"{ours}.feed_forward.output", f"{theirs}.output.dense"),
        *torch_pair(f"{ours}.feed_forward_post", f"{theirs}.output.LayerNorm"),
    ]


def huggingface_embedding(ours: str, theirs: str) -> list[Row]:
    """Make the rows of the embeddings in Hugging Face's names."""
    return [
        row("token.weight", f"{theirs}.word_embeddings.weight"),
        row(f"{ours}.embedding.position.weight", f"{theirs}.position_embeddings.weight"),
        row(f"{ours}.embedding.segment.weight", f"{theirs}.token_type_embeddings.weight"),
        *torch_pair(f"{ours}.embedding.norm", f"{theirs}.LayerNorm"),
    ]


def huggingface_mlm(config: ModelConfig) -> list[Row]:
    """Make the rows of the MLM head in Hugging Face's names; raises ConfigError if its output is not tied."""
    check_tied(config)
    return [
        *torch_pair("output.dense", "cls.predictions.transform.dense"),
        *torch_pair("output.norm", "cls.predictions.transform.LayerNorm"),
        row("output.bias", "cls.predictions.bias"),
    ]


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
        *huggingface_embedding("encoder", "bert.embeddings"),
        *blocks(config, huggingface_layer, "bert.encoder.layer.{}"),
        *torch_pair("pooler.dense", "bert.pooler.dense"),
        *torch_pair("pooler.nsp", "cls.seq_relationship"),
        *huggingface_mlm(config),
    ]


def huggingface_encoder(data: Config, *, family: str, **changes: Any) -> ModelConfig:
    """Read what Hugging Face's config.json of every BERT-like encoder says alike."""
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


def huggingface_original(model_type: str, word: str) -> Callable[[ModelConfig], dict[str, Any]]:
    """Make the writer of a BERT-like config.json for Hugging Face; word: what its classes begin with."""

    def write(config: ModelConfig) -> dict[str, Any]:
        stack = config.main
        data = write_transformer(config, gelu="gelu_erf")
        # Its code derives these from the hidden_size; a reader would not miss them.
        for key in ("attention_head_size", "attention_key_size", "shared_segment_embeddings"):
            data.pop(key, None)
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


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    data = huggingface_original("bert", "Bert")(config)
    data.pop("embedding_size", None)  # its embeddings have the hidden_size of the stack
    return data


BERT = Family(
    "bert",
    tensorflow=Names(
        config=lambda data: encoder_config(data, family="bert", gelu="gelu_tanh"),
        original=lambda config: write_transformer(config, gelu="gelu_tanh"),
        rows=rows,
        sizes=Sizes(
            token="bert/embeddings/word_embeddings",
            position="bert/embeddings/position_embeddings",
            segment="bert/embeddings/token_type_embeddings",
            layer="bert/encoder/layer_{}/",
            query="bert/encoder/layer_0/attention/self/query/kernel",
            feed_forward="bert/encoder/layer_0/intermediate/dense/kernel",
        ),
        heads=HEADS,
        marks=("bert/embeddings/position_embeddings",),
        prefix="bert/",
    ),
    huggingface=Names(
        config=partial(huggingface_encoder, family="bert"),
        original=_huggingface_original,
        rows=huggingface_rows,
        sizes=huggingface_sizes("bert"),
        marks=("bert.embeddings.position_embeddings.weight",),
        heads={
            "pool": "bert.pooler.dense.weight",
            "nsp": "cls.seq_relationship.weight",
            "mlm": "cls.predictions.bias",
        },
        dropped=HUGGINGFACE_DROPPED,
        repeats=huggingface_repeats("bert"),
        model_type="bert",
        prefix="bert.",
    ),
)
