"""GPT (CDial-GPT, in bert4keras's names and as transformers' OpenAIGPT), with segments for speakers.

Post-norm, no norm on the embeddings nor at the end.
The original runs OpenAI's GPT: gelu by tanh, eps 1e-5 (huggingface/transformers, openai-gpt).
"""

from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.families import keys
from hanmo.families.bert import BLOCK
from hanmo.families.family import TENSORFLOW, Family, Names
from hanmo.families.gpt2 import DENSE, causal_config, hparams, huggingface_names, write_hparams

_NAMES = {
    "token": "gpt.embeddings.word_embeddings",
    "decoder.embedding.position": "gpt.embeddings.position_embeddings",
    "decoder.embedding.segment": "gpt.embeddings.token_type_embeddings",
    "decoder.blocks.{}": ("gpt.transformer.layer_{}", BLOCK),
}
_HUGGINGFACE_NAMES = {
    "token": "transformer.tokens_embed",
    "decoder.embedding.position": "transformer.positions_embed",
    "decoder.blocks.{}": ("transformer.h.{}", DENSE | {"attention_post": "ln_1", "feed_forward_post": "ln_2"}),
}
# transformers' OpenAIGPT calls the tanh approximation "gelu", and adds speakers' tokens only where they are given.
_KEYS = keys.GPT2 | {
    "activation": "afn",
    "segments": "type_vocab_size",
    "shared_segments": "shared_segment_embeddings",
}


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    stack = config.main
    if stack.feed_forward != 4 * stack.hidden_size:
        raise ConfigError(f"feed_forward is {stack.feed_forward}; OpenAIGPT has 4 × n_embd, {4 * stack.hidden_size}")
    data = write_hparams(config, "openai-gpt", "OpenAIGPT", _KEYS, gelu="gelu_tanh")
    own = {"n_inner"} if stack.segments else {"n_inner", "type_vocab_size"}  # keys that OpenAIGPT does not have
    return {key: value for key, value in data.items() if key not in own}


GPT = Family(
    "gpt",
    tensorflow=Names.of(
        TENSORFLOW,
        _NAMES,
        config=partial(causal_config, family="gpt", gelu="gelu_tanh"),
        original=partial(keys.write_model, gelu="gelu_tanh"),
        absent=("gpt/output/LayerNorm/gamma",),
    ),
    huggingface=huggingface_names(
        _HUGGINGFACE_NAMES,
        config=partial(hparams, family="gpt", gelu="gelu_tanh", names=_KEYS),
        original=_huggingface_original,
        model_type="openai-gpt",
    ),
)
