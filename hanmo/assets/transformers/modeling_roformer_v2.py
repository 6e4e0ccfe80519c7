"""RoFormerV2 (ZhuiyiTechnology/roformer-v2) for transformers 5.5 and later.

BERT's blocks without biases, with RMS norms without weights, and queries and keys rotated by their positions (pairs of
neighbouring numbers, arXiv 2104.09864). The output matrix is the token embedding.
"""

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.utils import can_return_tuple

from .configuration_roformer_v2 import RoFormerV2Config

if Version(transformers.__version__) < Version("5.5"):
    raise ImportError(f"RoFormerV2 needs transformers 5.5 or later, this is {transformers.__version__}; upgrade it")

from transformers.utils.output_capturing import capture_outputs


def rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of neighbouring numbers.   x: [b, heads, n, size].   sin, cos: [n, size / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


class RoFormerV2SelfAttention(nn.Module):
    def __init__(self, config: RoFormerV2Config):
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, hidden_states, mask, sin, cos):
        query, key, value = (
            layer(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        query, key = rotate(query, sin, cos), rotate(key, sin, cos)
        dropout = self.dropout if self.training else 0.0
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2)


class RoFormerV2Layer(GradientCheckpointingLayer):
    def __init__(self, config: RoFormerV2Config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        output = nn.ModuleDict({"dense": nn.Linear(width, width, bias=False)})
        self.attention = nn.ModuleDict({"self": RoFormerV2SelfAttention(config), "output": output})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner, bias=False)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width, bias=False)})
        self.norm = nn.RMSNorm(width, eps=config.layer_norm_eps, elementwise_affine=False)
        self.act, self.dropout = ACT2FN[config.hidden_act], nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, mask, sin, cos):
        attended = self.attention["output"]["dense"](self.attention["self"](hidden_states, mask, sin, cos))
        hidden_states = self.norm(hidden_states + self.dropout(attended))
        fed = self.output["dense"](self.act(self.intermediate["dense"](hidden_states)))
        return self.norm(hidden_states + self.dropout(fed))


class RoFormerV2PreTrainedModel(PreTrainedModel):
    config_class = RoFormerV2Config
    config: RoFormerV2Config
    base_model_prefix = "roformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RoFormerV2Layer"]
    _can_record_outputs = {"hidden_states": RoFormerV2Layer}
    _supports_sdpa = True


class RoFormerV2Model(RoFormerV2PreTrainedModel):
    def __init__(self, config: RoFormerV2Config):
        super().__init__(config)
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, config.hidden_size),
            }
        )
        layers = nn.ModuleList(RoFormerV2Layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings["word_embeddings"]

    def set_input_embeddings(self, value):
        self.embeddings["word_embeddings"] = value

    @capture_outputs
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is None:
            inputs_embeds = self.embeddings["word_embeddings"](input_ids)
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        if token_type_ids is None:
            token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=device)
        segments = self.embeddings["token_type_embeddings"](token_type_ids)
        hidden_states = self.dropout(self.norm(inputs_embeds + segments))
        size = self.config.hidden_size // self.config.num_attention_heads
        frequency = 10000.0 ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / -size)
        angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency
        sin, cos = angle.sin().to(hidden_states.dtype), angle.cos().to(hidden_states.dtype)
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        for layer in self.encoder["layer"]:
            hidden_states = layer(hidden_states, mask, sin, cos)
        return BaseModelOutput(last_hidden_state=hidden_states)


class RoFormerV2ForMaskedLM(RoFormerV2PreTrainedModel):
    _tied_weights_keys = {"lm_head.weight": "roformer.embeddings.word_embeddings.weight"}

    def __init__(self, config: RoFormerV2Config):
        super().__init__(config)
        self.roformer = RoFormerV2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        out = self.roformer(input_ids, attention_mask, token_type_ids, **kwargs)
        logits = self.lm_head(out.last_hidden_state)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


__all__ = ["RoFormerV2ForMaskedLM", "RoFormerV2Model", "RoFormerV2PreTrainedModel"]
