"""BERT (google-research/bert): gelu by tanh, norms with eps 1e-12; also RoBERTa-wwm, which is a BERT.

RoBERTa, NEZHA, RoFormer, ALBERT, ELECTRA and GPT build on the names and functions here.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import keys
from hanmo.families.family import TENSORFLOW, TORCH, Config, Family, Names

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


def names(prefix: str, layer: str = "layer.{}", *, project: str = "", position: bool = True) -> dict[str, Any]:
    """Name the embeddings and blocks of an encoder.

    layer: of a block.   project: of token vectors to the hidden size.   position: whether positions are learned.
    """
    embeddings = f"{prefix}.embeddings"
    found: dict[str, Any] = {
        "token": f"{embeddings}.word_embeddings",
        "encoder.embedding.position": f"{embeddings}.position_embeddings",
        "encoder.embedding.segment": f"{embeddings}.token_type_embeddings",
        "encoder.embedding.norm": f"{embeddings}.LayerNorm",
        "encoder.embedding.project": f"{prefix}.{project}",
        "encoder.blocks.{}": (f"{prefix}.encoder.{layer}", BLOCK),
    }
    absent = {"encoder.embedding.position": not position, "encoder.embedding.project": not project}
    return {ours: theirs for ours, theirs in found.items() if not absent.get(ours)}


PROJECT = "encoder.embedding_hidden_mapping_in"
_TRANSFORM = {
    "output.dense": "cls.predictions.transform.dense",
    "output.norm": "cls.predictions.transform.LayerNorm",
}
GOOGLE_HEADS = {
    "pooler.dense": "bert.pooler.dense",
    "pooler.nsp.weight": "cls.seq_relationship.output_weights",  # stored [2, hidden_size]
    "pooler.nsp.bias": "cls.seq_relationship.output_bias",
    **_TRANSFORM,
    "output.bias": "cls.predictions.output_bias",
}
GOOGLE_NAMES = names("bert", "layer_{}", project=PROJECT) | GOOGLE_HEADS
MLM = {**_TRANSFORM, "output.bias": "cls.predictions.bias"}
NSP = {"pooler.nsp": "cls.seq_relationship"}


def encoder_config(data: Config, *, family: str, gelu: str, **changes: Any) -> ModelConfig:
    """Read a BERT-like encoder with every head its checkpoints may have."""
    stack = keys.read_stack(data, gelu=gelu, **changes)
    act = keys.activation(data, gelu)
    return keys.read_model(data, family, encoder=stack, output="mlm", pool="tanh", nsp=True, head_activation=act)


def huggingface_names(
    prefix: str, table: Mapping[str, Any], *, head: str = "cls.predictions", dropped: Any = (), **fields: Any
) -> Names:
    """Make a format in Hugging Face's names.

    head: the MLM head, whose output a file may hold a second time.   dropped: beyond those of every encoder.
    """
    dotted = head.replace(".", r"\.")
    known = {
        r"(^|.*\.)position_ids$": "the numbers 0, 1, 2, …",
        rf"^{dotted}\.decoder\.(weight|bias)$": f"the same tensor as the embedding and {head}.bias",
    }
    values: dict[str, Any] = {
        "model_type": prefix,
        "prefix": f"{prefix}.",
        "repeats": {f"{head}.decoder.weight": f"{table['token']}.weight", f"{head}.decoder.bias": f"{head}.bias"},
        "dropped": known | dict(dropped),
    }
    return Names.of(TORCH, table, **values | fields)


def huggingface_config(data: Config, *, family: str, **changes: Any) -> ModelConfig:
    """Read the parts of Hugging Face's config.json that all BERT-like encoders have in common."""
    kind = data.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ConfigError(f"position_embedding_type is {kind!r} in config.json; Hanmo reads 'absolute' ones")
    if data.get("add_cross_attention", False):
        raise ConfigError("add_cross_attention is true in config.json; Hanmo reads encoders that stand alone")
    eps = keys.read(data, "layer_norm_eps", float, 1e-12)
    mask = "causal" if data.get("is_decoder", False) else "full"
    changes = {"norm_eps": eps, "embedding_norm_eps": eps, "mask": mask} | changes
    config = encoder_config(data, family=family, gelu="gelu_erf", **changes)
    return replace(config, head_norm_eps=eps, tied=data.get("tie_word_embeddings", True))


# Hugging Face's code derives these from the hidden size; a reader would not miss them.
_KEYS = {ours: key for ours, key in keys.BERT.items() if ours not in ("head_dim", "key_dim", "shared_segments")}


def huggingface_original(
    config: ModelConfig, *, model_type: str, word: str, embedding_size: bool = False, **others: Any
) -> dict[str, Any]:
    """Write a BERT-like config.json for Hugging Face.

    word: what its classes begin with.   embedding_size: whether embeddings may be narrower than the stack.
    others: more keys.
    """
    stack = config.main
    data = keys.write_model(config, _KEYS, gelu="gelu_erf", gelu_tanh="gelu_new")
    data.pop("embedding_size", None)
    if embedding_size:
        data["embedding_size"] = stack.embedding_size
    if stack.mask == "causal":
        data["is_decoder"] = True
    pretrained = config.discriminator or (config.output == "mlm" and config.nsp)
    name = "ForPreTraining" if pretrained else "ForMaskedLM" if config.output == "mlm" else "Model"
    return data | {
        "model_type": model_type,
        "architectures": [word + name],
        "layer_norm_eps": stack.norm_eps,
        "pad_token_id": 0,
        **others,
    }


BERT = Family(
    "bert",
    tensorflow=Names.of(
        TENSORFLOW,
        GOOGLE_NAMES,
        config=partial(encoder_config, family="bert", gelu="gelu_tanh"),
        original=partial(keys.write_model, gelu="gelu_tanh"),
        marks=("bert/embeddings/position_embeddings",),
        prefix="bert/",
    ),
    huggingface=huggingface_names(
        "bert",
        {**names("bert"), "pooler.dense": "bert.pooler.dense", **NSP, **MLM},
        config=partial(huggingface_config, family="bert"),
        original=partial(huggingface_original, model_type="bert", word="Bert"),
        marks=("bert.embeddings.position_embeddings.weight",),
    ),
)
