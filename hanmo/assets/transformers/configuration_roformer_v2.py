"""Configuration of RoFormerV2 (ZhuiyiTechnology/roformer-v2) for transformers."""

from transformers import PreTrainedConfig


class RoFormerV2Config(PreTrainedConfig):
    """Configuration of `RoFormerV2Model`; there is no limit of positions."""

    model_type = "roformer_v2"

    vocab_size: int = 12000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0


__all__ = ["RoFormerV2Config"]
