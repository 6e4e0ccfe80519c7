"""T5: 1.0 (relu, tied, scaled), 1.1 and mT5 (gated gelu by tanh, an output of its own, unscaled); RMS norms, eps 1e-6.

No biases, no score scale, one table of relative positions a stack, kept in its first block. In mesh-TensorFlow's names
every [in, out] is bare: `encoder/block_000/layer_000/SelfAttention/q`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig, Sublayer
from hanmo.errors import ConfigError
from hanmo.families import keys
from hanmo.families.family import PRE_NORM, Config, Family, Layout, Names, Row, Table

DECODER = (PRE_NORM[0], Sublayer("cross", pre=True), PRE_NORM[1])
_FIXED: dict[str, Any] = {
    "position": "buckets",
    "positions": None,
    "segments": 0,
    "shared_segments": False,
    "embedding_norm": False,
    "final_norm": True,
    "norm": "rms",
    "norm_bias": False,
    "bias": False,
    "score_scale": 1.0,
}
# The BERT-like config.json that users write beside a T5 checkpoint.
_KEYS = {ours: key for ours, key in keys.BERT.items() if not ours.endswith(("positions", "segments", "embedding_size"))}
_MESH = Layout(("",), ("/scale",), "", how="transpose", separator="/")
_HUGGINGFACE = Layout((".weight",), (".weight",), relative="transpose")
_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_UNREAD = "a table that the published T5 never reads"


def _table(family: str, gated: bool, huggingface: bool) -> Table:
    norm, final, kernel = "layer_norm", "final_layer_norm", "" if huggingface else ".kernel"
    if family == "mt5.1.1" and not huggingface:
        norm = final = "rms_norm"
    if huggingface:
        block, layer, token, output = ".block.{}", "layer.", "shared", "lm_head"
    else:
        block, layer, token, output = ".block_{:03d}", "layer_00", "shared.embedding", "decoder.logits.kernel"
    names: dict[str, Any] = {"token": token, "output": output}
    wi = {"gate": "wi_0", "input": "wi_1"} if gated else {"input": "wi"}
    qkvo = {"query": "q", "key": "k", "value": "v", "output": "o"}
    modules = {
        "attention": {ours: f"SelfAttention.{theirs}" for ours, theirs in qkvo.items()},
        "cross": {ours: f"EncDecAttention.{theirs}" for ours, theirs in qkvo.items()},
        "feed_forward": {ours: f"DenseReluDense.{theirs}{kernel}" for ours, theirs in (wi | {"output": "wo"}).items()},
    }
    for side, order in (("encoder", PRE_NORM), ("decoder", DECODER)):
        names[f"{side}.relative"] = f"{side}{block.format(0)}.{layer}0.SelfAttention.relative_attention_bias"
        names[f"{side}.norm"] = f"{side}.{final}"
        parts = {}
        for j, sublayer in enumerate(order):
            parts[f"{sublayer.kind}_pre"] = f"{layer}{j}.{norm}"
            for ours, theirs in modules[sublayer.kind].items():
                parts[f"{sublayer.kind}.{ours}"] = f"{layer}{j}.{theirs}"
        names[f"{side}.blocks.{{}}"] = (side + block, parts)
    return Table(_HUGGINGFACE if huggingface else _MESH, names)


def _model(data: Config, family: str, encoder: Any, num_layers: int, *, scaled: bool) -> ModelConfig:
    """Add the decoder; scaled: the output is the embedding, and hidden states are scaled for it (T5 1.0)."""
    decoder = replace(encoder, num_layers=num_layers, order=DECODER, mask="causal")
    scale = encoder.hidden_size**-0.5 if scaled else 1.0
    return keys.read_model(data, family, encoder=encoder, decoder=decoder, output="lm", tied=scaled, logit_scale=scale)


def _config(data: Config, *, family: str) -> ModelConfig:
    act = data.get("hidden_act", "relu" if family == "t5.1.0" else ["gelu", "linear"])
    gated = isinstance(act, list)
    if gated and (len(act) != 2 or act[1] != "linear"):
        raise ConfigError(f"hidden_act is {act!r} in config.json; expected a name, or a pair whose second is 'linear'")
    data = dict(data) | {"hidden_act": act[0] if gated else act}
    fixed = _FIXED | {"order": PRE_NORM, "norm_eps": 1e-6, "gated": gated}
    stack = keys.read_stack(data, _KEYS, gelu="gelu_tanh", **fixed)
    return _model(data, family, stack, stack.num_layers, scaled=family == "t5.1.0")


def _original(config: ModelConfig) -> dict[str, Any]:
    data = keys.write_model(config, _KEYS, gelu="gelu_tanh") | {"attention_head_size": config.main.head_dim}
    if config.main.gated:
        data["hidden_act"] = [data["hidden_act"], "linear"]
    del data["initializer_range"]
    return data


def _huggingface_config(data: Config, *, family: str) -> ModelConfig:
    """Read Hugging Face's config.json, in which "tie_word_embeddings" tells whether the output is scaled.

    transformers 5 writes it as true for every T5, with "scale_decoder_outputs" beside it, and ties what the file does
    not hold apart; its mT5 never scales. Whether the output is tied is seen in the file (`heads`).
    """
    mt5 = family == "mt5.1.1"
    gate = keys.read(data, "feed_forward_proj", str, "gated-gelu" if mt5 else "relu")
    gated = gate.startswith("gated-")
    data = {"dropout_rate": 0.1, "layer_norm_epsilon": 1e-6} | dict(data)
    data["feed_forward_proj"], data["key_dim"] = gate.removeprefix("gated-"), keys.read(data, "d_kv", int)
    # transformers runs every "gated-gelu" as the tanh approximation.
    gelu = "gelu_tanh" if gated else "gelu_erf"
    stack = keys.read_stack(data, keys.T5, gelu=gelu, order=PRE_NORM, gated=gated, **_FIXED)
    scaled = not mt5 and data.get("scale_decoder_outputs", data.get("tie_word_embeddings") is not False)
    if family == "t5.1.0" and not scaled:
        family = "t5.1.1"
    return _model(data, family, stack, data.get("num_decoder_layers") or stack.num_layers, scaled=scaled)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    stack, encoder = config.main, config.encoder
    if encoder is None:
        raise ConfigError("encoder is missing; Hugging Face has no T5 that is a decoder alone")
    data = keys.write_model(config, keys.T5, gelu="gelu_erf", gelu_tanh="gelu_new")
    del data["initializer_range"]
    if stack.gated:
        # "gated-gelu" is the tanh approximation; only its long name means the exact one.
        act = {"gelu_tanh": "gelu", "gelu_erf": "gelu_python"}.get(stack.activation, stack.activation)
        data["feed_forward_proj"] = f"gated-{act}"
    word = "MT5" if config.family == "mt5.1.1" else "T5"
    data |= {
        "model_type": word.lower(),
        "architectures": [word + ("ForConditionalGeneration" if config.decoder else "EncoderModel")],
        "d_kv": stack.head_dim,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": stack.num_layers,
        "dropout_rate": stack.dropout,
        "tie_word_embeddings": config.tied,
        "is_encoder_decoder": config.decoder is not None,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    return data | ({"scale_decoder_outputs": config.logit_scale != 1.0} if word == "T5" else {})


def _names(family: str, huggingface: bool, **fields: Any) -> Names:
    def rows(config: ModelConfig) -> list[Row]:
        return _table(family, config.main.gated, huggingface).rows(config)

    table = _table(family, family != "t5.1.0", huggingface)
    return Names.of(table.layout, table.names, rows=rows, **fields)


def _family(name: str, model_type: str) -> Family:
    final = "{}/rms_norm/scale" if name == "mt5.1.1" else "{}/final_layer_norm/scale"
    return Family(
        name,
        tensorflow=_names(
            name,
            huggingface=False,
            config=partial(_config, family=name),
            original=_original,
            heads={"decoder": final.format("decoder")},
            marks=(final.format("encoder"),),
            dropped={r".*/EncDecAttention/relative_attention_bias$": _UNREAD},
        ),
        huggingface=_names(
            name,
            huggingface=True,
            config=partial(_huggingface_config, family=name),
            original=_huggingface_original,
            heads={"decoder": "decoder.final_layer_norm.weight", "untied": "lm_head.weight"},
            repeats=dict.fromkeys(_TIED, "shared.weight"),
            dropped={
                r"^(encoder|decoder)\.embed_tokens\.weight$|^lm_head\.weight$": "the same tensor as shared.weight",
                r".*\.EncDecAttention\.relative_attention_bias\.weight$": _UNREAD,
            },
            model_type=model_type,
            style="t5",
        ),
    )


T5_1_0 = _family("t5.1.0", "t5")
T5_1_1 = _family("t5.1.1", "t5")
MT5_1_1 = _family("mt5.1.1", "mt5")
