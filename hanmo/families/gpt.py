"""GPT (CDial-GPT in TensorFlow's names): post-norm, no norm on the embeddings nor at the end, segments for speakers.

The original runs OpenAI's GPT: gelu by tanh, eps 1e-5 (huggingface/transformers, openai-gpt).
"""

from hanmo.config import ModelConfig
from hanmo.families.bert import google_layer
from hanmo.families.family import (
    TRAINING,
    Config,
    Family,
    Names,
    Row,
    Sizes,
    blocks,
    read,
    row,
    transformer,
    write_transformer,
)


def _config(data: Config) -> ModelConfig:
    stack = transformer(data, gelu="gelu_tanh", mask="causal", embedding_norm=False, norm_eps=1e-5)
    return ModelConfig(family="gpt", vocab=read(data, "vocab_size", int), decoder=stack, output="lm")


def _rows(config: ModelConfig) -> list[Row]:
    return [
        row("token.weight", "gpt/embeddings/word_embeddings"),
        row("decoder.embedding.position.weight", "gpt/embeddings/position_embeddings"),
        row("decoder.embedding.segment.weight", "gpt/embeddings/token_type_embeddings"),
        *blocks(config, google_layer, "gpt/transformer/layer_{}"),
    ]


def gpt_sizes(segment: str = "") -> Sizes:
    """Tell sizes by the names that bert4keras's conversions of GPT and CPM have."""
    return Sizes(
        token="gpt/embeddings/word_embeddings",
        position="gpt/embeddings/position_embeddings",
        segment=segment,
        layer="gpt/transformer/layer_{}/",
        query="gpt/transformer/layer_0/attention/self/query/kernel",
        feed_forward="gpt/transformer/layer_0/intermediate/dense/kernel",
    )


GPT = Family(
    "gpt",
    tensorflow=Names(
        config=_config,
        original=lambda config: write_transformer(config, gelu="gelu_tanh"),
        rows=_rows,
        sizes=gpt_sizes("gpt/embeddings/token_type_embeddings"),
        absent=("gpt/output/LayerNorm/gamma",),
        dropped=TRAINING,
    ),
)
