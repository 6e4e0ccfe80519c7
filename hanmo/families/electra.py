"""ELECTRA's discriminator (google-research/electra): exact gelu, norms with eps 1e-12, one logit a token.

A released checkpoint also holds the small generator that made the replaced tokens; it is no part of the model.
Hugging Face keeps generators as models of their own, with an MLM head.
"""

from dataclasses import replace
from functools import partial

from hanmo.config import ModelConfig
from hanmo.families import bert
from hanmo.families.family import Config, Family, Names, Row, blocks, google, layers, row, torch_pair, write_transformer

_DENSE, _OUTPUT = "discriminator.dense", "discriminator.output"


def _config(data: Config) -> ModelConfig:
    config = bert.encoder_config(data, family="electra", gelu="gelu_erf")
    return replace(config, output="none", pool="none", nsp=False, discriminator=True)


def _rows(config: ModelConfig) -> list[Row]:
    return [
        *layers(google, bert.EMBEDDING, theirs="electra.embeddings"),
        *google("encoder.embedding.project", "electra.embeddings_project"),
        *blocks(config, bert.google_block, "electra.encoder.layer_{}"),
        *layers(google, {_DENSE: "dense", _OUTPUT: "dense_1"}, theirs="discriminator_predictions"),
    ]


def _huggingface_config(data: Config) -> ModelConfig:
    config = bert.huggingface_encoder({"embedding_size": 128} | dict(data), family="electra")
    if "ElectraForMaskedLM" in (data.get("architectures") or ()):  # its head takes gelu, whatever hidden_act is
        config = replace(config, head_activation="gelu_erf")
    return replace(config, pool="none", nsp=False, discriminator=True)


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    bert.check_tied(config)
    return [
        *layers(torch_pair, bert.EMBEDDING, theirs="electra.embeddings"),
        *torch_pair("encoder.embedding.project", "electra.embeddings_project"),
        *blocks(config, bert.huggingface_block, "electra.encoder.layer.{}"),
        *layers(torch_pair, {_DENSE: "dense", _OUTPUT: "dense_prediction"}, theirs="discriminator_predictions"),
        *layers(torch_pair, {"output.dense": "dense", "output.norm": "LayerNorm"}, theirs="generator_predictions"),
        row("output.bias", "generator_lm_head.bias"),
    ]


ELECTRA = Family(
    "electra",
    tensorflow=Names(
        config=_config,
        original=partial(write_transformer, gelu="gelu_erf"),
        rows=_rows,
        sizes=bert.google_sizes("electra"),
        heads={"discriminator": "discriminator_predictions/dense/kernel"},
        dropped={r"^generator(_predictions)?/": "the generator, which only training needs"},
    ),
    huggingface=bert.huggingface_names(
        "electra",
        config=_huggingface_config,
        original=bert.huggingface_original("electra", "Electra", embedding_size=True),
        rows=_huggingface_rows,
        marks=("electra.embeddings.position_embeddings.weight",),
        heads={"discriminator": "discriminator_predictions.dense.weight", "mlm": "generator_lm_head.bias"},
        dropped={r"^generator_lm_head\.weight$": "the same tensor as the embedding"},
        repeats={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    ),
)
