"""Configuration of GPT2_ML (imcaspar/gpt2-ml) for transformers, in the keys of the original's config.json."""

from transformers import PreTrainedConfig


class GPT2MLConfig(PreTrainedConfig):
    """Configuration of `GPT2MLModel`; the network has no attention dropout."""

    model_type = "gpt2_ml"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embed_positions": (["position_ids"], ["position_embeds"]),
        "embed_norm": (["hidden_states"], ["hidden_states"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    }

    vocab_size: int = 21130
    hidden_size: int = 1536
    num_hidden_layers: int = 48
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    max_position_embeddings: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


__all__ = ["GPT2MLConfig"]
