"""NEZHA (Huawei, NEZHA-TensorFlow) for transformers 5.5 and later, in the names of release 4, which had it.

BERT whose positions are relative: a fixed table of sines and cosines, clipped at a distance, is added to keys and to
values.
"""

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.utils import can_return_tuple

from .configuration_nezha import NezhaConfig

if Version(transformers.__version__) < Version("5.5"):
    raise ImportError(f"NEZHA needs transformers 5.5 or later, this is {transformers.__version__}; upgrade it")

from transformers.utils.output_capturing import capture_outputs


def relative_table(config: NezhaConfig, length: int, device) -> torch.Tensor:
    """Return the vectors between all pairs of positions, float32 [length, length, head_dim]."""
    size, clip = config.hidden_size // config.num_attention_heads, config.max_relative_position
    frequency = 10000.0 ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / -size)
    angle = torch.arange(2 * clip + 1, dtype=torch.float32, device=device)[:, None] * frequency
    table = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)
    at = torch.arange(length, device=device)
    return table[(at[None] - at[:, None]).clamp(-clip, clip) + clip]


class NezhaEmbeddings(nn.Module):
    def __init__(self, config: NezhaConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids, inputs_embeds):
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        return self.dropout(self.LayerNorm(inputs_embeds + self.token_type_embeddings(token_type_ids)))


class NezhaSelfAttention(nn.Module):
    def __init__(self, config: NezhaConfig):
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states, mask, table):
        query, key, value = (
            layer(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        table = table.to(query.dtype)
        scores = query @ key.transpose(-1, -2) + torch.einsum("bhnd,nmd->bhnm", query, table)
        weights = self.dropout((scores * self.head_dim**-0.5 + mask).softmax(-1))
        out = weights @ value + torch.einsum("bhnm,nmd->bhnd", weights, table)
        return out.transpose(1, 2).flatten(2)


class NezhaOutput(nn.Module):
    def __init__(self, config: NezhaConfig, size: int):
        super().__init__()
        self.dense = nn.Linear(size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, residual):
        return self.LayerNorm(residual + self.dropout(self.dense(hidden_states)))


class NezhaLayer(GradientCheckpointingLayer):
    def __init__(self, config: NezhaConfig):
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": NezhaSelfAttention(config), "output": NezhaOutput(config, config.hidden_size)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = NezhaOutput(config, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states, mask, table):
        attended = self.attention["self"](hidden_states, mask, table)
        hidden_states = self.attention["output"](attended, hidden_states)
        return self.output(self.act(self.intermediate["dense"](hidden_states)), hidden_states)


class NezhaPreTrainedModel(PreTrainedModel):
    config_class = NezhaConfig
    config: NezhaConfig
    base_model_prefix = "nezha"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NezhaLayer"]
    _can_record_outputs = {"hidden_states": NezhaLayer}


class NezhaModel(NezhaPreTrainedModel):
    def __init__(self, config: NezhaConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = NezhaEmbeddings(config)
        layers = nn.ModuleList(NezhaLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.pooler = nn.ModuleDict({"dense": dense}) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @capture_outputs
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None, **kwargs):
        hidden_states = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        mask = torch.zeros((), dtype=hidden_states.dtype, device=hidden_states.device)
        if attention_mask is not None:
            lowest = torch.finfo(hidden_states.dtype).min
            mask = (1 - attention_mask[:, None, None].to(hidden_states.dtype)) * lowest
        table = relative_table(self.config, hidden_states.shape[1], hidden_states.device)
        for layer in self.encoder["layer"]:
            hidden_states = layer(hidden_states, mask, table)
        pooled = None if self.pooler is None else torch.tanh(self.pooler["dense"](hidden_states[:, 0]))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class NezhaPredictions(nn.Module):
    def __init__(self, config: NezhaConfig):
        super().__init__()
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform = nn.ModuleDict({"dense": dense, "LayerNorm": norm})
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states):
        hidden_states = self.act(self.transform["dense"](hidden_states))
        return self.decoder(self.transform["LayerNorm"](hidden_states))


class NezhaForMaskedLM(NezhaPreTrainedModel):
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "nezha.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: NezhaConfig):
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.cls = nn.ModuleDict({"predictions": NezhaPredictions(config)})
        self.post_init()

    def get_output_embeddings(self):
        return self.cls["predictions"].decoder

    def set_output_embeddings(self, value):
        self.cls["predictions"].decoder = value

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        out = self.nezha(input_ids, attention_mask, token_type_ids, **kwargs)
        logits = self.cls["predictions"](out.last_hidden_state)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class NezhaForPreTraining(NezhaForMaskedLM):
    def __init__(self, config: NezhaConfig):
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.cls["seq_relationship"] = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        out = self.nezha(input_ids, attention_mask, token_type_ids, **kwargs)
        return BertForPreTrainingOutput(
            prediction_logits=self.cls["predictions"](out.last_hidden_state),
            seq_relationship_logits=self.cls["seq_relationship"](out.pooler_output),
            hidden_states=out.hidden_states,
        )


__all__ = ["NezhaForMaskedLM", "NezhaForPreTraining", "NezhaModel", "NezhaPreTrainedModel"]
