"""GPT (CDial-GPT, in bert4keras's names and as transformers' OpenAIGPT), with segments for speakers.

Post-norm, no norm on the embeddings nor at the end.
The original runs OpenAI's GPT: gelu by tanh, eps 1e-5 (huggingface/transformers, openai-gpt).
"""

from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families.bert import google_block
from hanmo.families.family import (
    POST_NORM,
    Config,
    Family,
    Names,
    Row,
    activation,
    blocks,
    google,
    layers,
    read,
    torch_pair,
    transformer,
    write_transformer,
)
from hanmo.families.gpt2 import CAUSAL_MASK, conv1d_block, gpt_sizes, hparams, original_hparams, transformer_sizes


def _config(data: Config) -> ModelConfig:
    stack = transformer(data, gelu="gelu_tanh", mask="causal", embedding_norm=False, norm_eps=1e-5)
    return ModelConfig(family="gpt", vocab_size=read(data, "vocab_size", int), decoder=stack, output="lm")


def _rows(config: ModelConfig) -> list[Row]:
    embedding = {
        "token": "word_embeddings",
        "decoder.embedding.position": "position_embeddings",
        "decoder.embedding.segment": "token_type_embeddings",
    }
    return [
        *layers(google, embedding, theirs="gpt.embeddings"),
        *blocks(config, google_block, "gpt.transformer.layer_{}"),
    ]


def _huggingface_config(data: Config) -> ModelConfig:
    # transformers' OpenAIGPT calls the tanh approximation "gelu", and adds speakers' tokens only where they are given.
    return hparams(
        data,
        family="gpt",
        activation=activation({"afn": "gelu"} | dict(data), "gelu_tanh", "afn"),
        mask="causal",
        order=POST_NORM,
        embedding_norm=False,
        segments=data.get("type_vocab_size", 0),
        shared_segments=bool(data.get("shared_segment_embeddings", False)),
    )


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    stack = config.main
    if stack.feed_forward != 4 * stack.hidden_size:
        raise ConfigError(f"feed_forward is {stack.feed_forward}; OpenAIGPT has 4 × n_embd, {4 * stack.hidden_size}")
    data = original_hparams(config, "openai-gpt", "OpenAIGPTLMHeadModel")
    if stack.segments:
        data |= {"type_vocab_size": stack.segments, "shared_segment_embeddings": stack.shared_segments}
    return data | {"afn": {"gelu_tanh": "gelu"}.get(stack.activation, stack.activation)}


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    names = {"token": "tokens_embed", "decoder.embedding.position": "positions_embed"}
    return [
        *layers(torch_pair, names, theirs="transformer"),
        *blocks(config, conv1d_block("attention_post", "feed_forward_post"), "transformer.h.{}"),
    ]


GPT = Family(
    "gpt",
    tensorflow=Names(
        config=_config,
        original=partial(write_transformer, gelu="gelu_tanh"),
        rows=_rows,
        sizes=gpt_sizes("gpt/embeddings/token_type_embeddings"),
        absent=("gpt/output/LayerNorm/gamma",),
    ),
    huggingface=Names(
        config=_huggingface_config,
        original=_huggingface_original,
        rows=_huggingface_rows,
        sizes=transformer_sizes("tokens_embed", "positions_embed"),
        repeats={"lm_head.weight": "transformer.tokens_embed.weight"},
        dropped=CAUSAL_MASK | {r"^lm_head\.weight$": "the same tensor as the embedding"},
        model_type="openai-gpt",
        style="gpt2",
        prefix="transformer.",
    ),
)
