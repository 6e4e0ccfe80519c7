"""ELECTRA's discriminator (google-research/electra): exact gelu, norms with eps 1e-12, a logit a token.

A released checkpoint also holds the small generator that made the replaced tokens; it is no part of the model.
Hugging Face keeps generators as models of their own, with an MLM head.
"""

from dataclasses import replace
from typing import Any

from hanmo.config import ModelConfig
from hanmo.families.bert import (
    HUGGINGFACE_DROPPED,
    check_tied,
    encoder_config,
    google_embedding,
    google_layer,
    huggingface_embedding,
    huggingface_encoder,
    huggingface_layer,
    huggingface_original,
    huggingface_sizes,
)
from hanmo.families.family import (
    Config,
    Family,
    Names,
    Row,
    Sizes,
    blocks,
    dense,
    row,
    torch_pair,
    write_transformer,
)


def _config(data: Config) -> ModelConfig:
    config = encoder_config(data, family="electra", gelu="gelu_erf")
    return replace(config, output="none", pool="none", nsp=False, discriminator=True)


def _rows(config: ModelConfig) -> list[Row]:
    return [
        *google_embedding("encoder", "electra/embeddings", "electra/embeddings_project"),
        *blocks(config, google_layer, "electra/encoder/layer_{}"),
        *dense("discriminator.dense", "discriminator_predictions/dense"),
        *dense("discriminator.output", "discriminator_predictions/dense_1"),
    ]


def _huggingface_config(data: Config) -> ModelConfig:
    config = huggingface_encoder({"embedding_size": 128} | dict(data), family="electra")
    if "ElectraForMaskedLM" in (data.get("architectures") or ()):  # its head takes gelu, whatever hidden_act is
        config = replace(config, head_activation="gelu_erf")
    return replace(config, pool="none", nsp=False, discriminator=True)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    data = huggingface_original("electra", "Electra")(config)
    return {"embedding_size": config.main.embedding_size} | data


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    check_tied(config)
    return [
        *huggingface_embedding("encoder", "electra.embeddings"),
        *torch_pair("encoder.embedding.project", "electra.embeddings_project"),
        *blocks(config, huggingface_layer, "electra.encoder.layer.{}"),
        *torch_pair("discriminator.dense", "discriminator_predictions.dense"),
        *torch_pair("discriminator.output", "discriminator_predictions.dense_prediction"),
        *torch_pair("output.dense", "generator_predictions.dense"),
        *torch_pair("output.norm", "generator_predictions.LayerNorm"),
        row("output.bias", "generator_lm_head.bias"),
    ]


ELECTRA = Family(
    "electra",
    tensorflow=Names(
        config=_config,
        original=lambda config: write_transformer(config, gelu="gelu_erf"),
        rows=_rows,
        sizes=Sizes(
            token="electra/embeddings/word_embeddings",
            position="electra/embeddings/position_embeddings",
            segment="electra/embeddings/token_type_embeddings",
            layer="electra/encoder/layer_{}/",
            query="electra/encoder/layer_0/attention/self/query/kernel",
            feed_forward="electra/encoder/layer_0/intermediate/dense/kernel",
        ),
        heads={"discriminator": "discriminator_predictions/dense/kernel"},
        dropped={r"^generator(_predictions)?/": "the generator, which only training needs"},
    ),
    huggingface=Names(
        config=_huggingface_config,
        original=_huggingface_original,
        rows=_huggingface_rows,
        sizes=huggingface_sizes("electra"),
        marks=("electra.embeddings.position_embeddings.weight",),
        heads={"discriminator": "discriminator_predictions.dense.weight", "mlm": "generator_lm_head.bias"},
        dropped=HUGGINGFACE_DROPPED | {r"^generator_lm_head\.weight$": "the same tensor as the embedding"},
        repeats={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        model_type="electra",
        prefix="electra.",
    ),
)
