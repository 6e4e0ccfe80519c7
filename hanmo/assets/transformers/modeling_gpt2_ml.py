"""GPT2_ML (imcaspar/gpt2-ml, after Grover) for transformers 5.5 and later.

A block is `h = x + attention(x)`, `out = mlp_ln1(h + mlp(mlp_ln0(h)))`; a norm follows the embeddings, none the last
block; gelu is exact; the output matrix is the token embedding.
"""

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .configuration_gpt2_ml import GPT2MLConfig

if Version(transformers.__version__) < Version("5.5"):
    raise ImportError(f"GPT2_ML needs transformers 5.5 or later, this is {transformers.__version__}; upgrade it")

from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class GPT2MLAttention(nn.Module):
    def __init__(self, config: GPT2MLConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        shape = hidden_states.shape[:-1]
        query, key, value = (
            # -1: under tensor parallelism each device has a part of the heads
            projection(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(*shape, -1).contiguous()), weights


class GPT2MLMLP(nn.Module):
    def __init__(self, config: GPT2MLConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states):
        return self.down_proj(self.act(self.up_proj(hidden_states)))


class GPT2MLDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: GPT2MLConfig, layer_idx: int):
        super().__init__()
        self.self_attn = GPT2MLAttention(config, layer_idx)
        self.mlp_ln0 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GPT2MLMLP(config)
        self.mlp_ln1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, attention_mask=None, past_key_values: Cache | None = None, **kwargs):
        attended, _ = self.self_attn(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return self.mlp_ln1(hidden_states + self.dropout(self.mlp(self.mlp_ln0(hidden_states))))


class GPT2MLPreTrainedModel(PreTrainedModel):
    config_class = GPT2MLConfig
    config: GPT2MLConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPT2MLDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPT2MLDecoderLayer, "attentions": GPT2MLAttention}


class GPT2MLModel(GPT2MLPreTrainedModel):
    def __init__(self, config: GPT2MLConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(GPT2MLDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        length, seen = inputs_embeds.shape[1], 0 if past_key_values is None else past_key_values.get_seq_length()
        if isinstance(seen, int) and seen + length > self.config.max_position_embeddings:
            total, known = seen + length, self.config.max_position_embeddings
            raise ValueError(f"the text has {total} tokens, the model {known} positions; shorten it")
        if position_ids is None:
            position_ids = (torch.arange(length, device=inputs_embeds.device) + seen).unsqueeze(0)
            if attention_mask is not None and attention_mask.ndim == 2:  # padding on the left is not counted
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        hidden_states = self.dropout(self.embed_norm(inputs_embeds + self.embed_positions(position_ids)))
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, mask, past_key_values=past_key_values, position_ids=position_ids, **kwargs
            )
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values if use_cache else None
        )


class GPT2MLForCausalLM(GPT2MLPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: GPT2MLConfig):
        super().__init__(config)
        self.model = GPT2MLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


__all__ = ["GPT2MLForCausalLM", "GPT2MLModel", "GPT2MLPreTrainedModel"]
