"""ELECTRA's discriminator (google-research/electra): exact gelu, norms with eps 1e-12, one logit a token.

A released checkpoint also holds the small generator that made the replaced tokens; it is no part of the model.
Hugging Face keeps generators as models of their own, with an MLM head.
"""

from dataclasses import replace
from functools import partial

from hanmo.config import ModelConfig
from hanmo.families import bert, keys
from hanmo.families.family import TENSORFLOW, Config, Family, Names

_NAMES = {
    **bert.names("electra", "layer_{}", project="embeddings_project"),
    "discriminator.dense": "discriminator_predictions.dense",
    "discriminator.output": "discriminator_predictions.dense_1",
}
_HUGGINGFACE_NAMES = {
    **bert.names("electra", project="embeddings_project"),
    "discriminator.dense": "discriminator_predictions.dense",
    "discriminator.output": "discriminator_predictions.dense_prediction",
    "output.dense": "generator_predictions.dense",
    "output.norm": "generator_predictions.LayerNorm",
    "output.bias": "generator_lm_head.bias",
}


def _config(data: Config) -> ModelConfig:
    config = bert.encoder_config(data, family="electra", gelu="gelu_erf")
    return replace(config, output="none", pool="none", nsp=False, discriminator=True)


def _huggingface_config(data: Config) -> ModelConfig:
    config = bert.huggingface_config({"embedding_size": 128} | dict(data), family="electra")
    if "ElectraForMaskedLM" in (data.get("architectures") or ()):  # its head takes gelu, whatever hidden_act is
        config = replace(config, head_activation="gelu_erf")
    return replace(config, pool="none", nsp=False, discriminator=True)


ELECTRA = Family(
    "electra",
    tensorflow=Names.of(
        TENSORFLOW,
        _NAMES,
        config=_config,
        original=partial(keys.write_model, gelu="gelu_erf"),
        dropped={r"^generator(_predictions)?/": "the generator, which only training needs"},
    ),
    huggingface=bert.huggingface_names(
        "electra",
        _HUGGINGFACE_NAMES,
        config=_huggingface_config,
        original=partial(bert.huggingface_original, model_type="electra", word="Electra", embedding_size=True),
        marks=("electra.embeddings.position_embeddings.weight",),
        dropped={r"^generator_lm_head\.weight$": "the same tensor as the embedding"},
        repeats={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    ),
)
