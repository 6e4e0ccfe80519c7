"""T5: 1.0 (relu, tied, scaled), 1.1 and mT5 (gated gelu by tanh, an output of its own, unscaled); RMS norms, eps 1e-6.

No biases, no score scale, one table of relative positions a stack, kept in its first block. In mesh-TensorFlow's names
every [in, out] is bare: `encoder/block_000/layer_000/SelfAttention/q`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hanmo.config import ModelConfig, StackConfig, Sublayer
from hanmo.errors import ConfigError
from hanmo.families.family import Config, Family, Names, Row, Sizes, activation, head_sizes, read, row

ENCODER = (Sublayer("attention", pre=True), Sublayer("feed_forward", pre=True))
DECODER = (Sublayer("attention", pre=True), Sublayer("cross", pre=True), Sublayer("feed_forward", pre=True))
_QKVO = {"query": "q", "key": "k", "value": "v", "output": "o"}
_WI, _GATED = {"input": "wi", "output": "wo"}, {"gate": "wi_0", "input": "wi_1", "output": "wo"}
# Names of a block's tensors behind the sub-layer's prefix: mesh-TensorFlow's, with or without RMS in the norm's name.
_MESH = {
    "block": "{side}/block_{i:03d}/layer_{j:03d}/",
    "attention": "SelfAttention/{}",
    "cross": "EncDecAttention/{}",
    "feed_forward": "DenseReluDense/{}/kernel",
    "relative": "SelfAttention/relative_attention_bias",
    "norm": "layer_norm/scale",
    "final": "{side}/final_layer_norm/scale",
}
_MESH_RMS = _MESH | {"norm": "rms_norm/scale", "final": "{side}/rms_norm/scale"}
_HUGGINGFACE = {
    "block": "{side}.block.{i}.layer.{j}.",
    "attention": "SelfAttention.{}.weight",
    "cross": "EncDecAttention.{}.weight",
    "feed_forward": "DenseReluDense.{}.weight",
    "relative": "SelfAttention.relative_attention_bias.weight",
    "norm": "layer_norm.weight",
    "final": "{side}.final_layer_norm.weight",
}
REPEATS = {
    name: "shared.weight" for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
}


def _stack(sizes: dict[str, Any], *, decoder: bool, num_layers: int) -> StackConfig:
    values: dict[str, Any] = {
        "num_layers": num_layers,
        "order": DECODER if decoder else ENCODER,
        "mask": "causal" if decoder else "full",
        "position": "buckets",
        "embedding_norm": False,
        "final_norm": True,
        "norm": "rms",
        "norm_eps": 1e-6,
        "norm_bias": False,
        "bias": False,
        "score_scale": 1.0,
    }
    return StackConfig(**values | sizes)


def _model(
    family: str, vocab_size: int, sizes: dict[str, Any], depths: tuple[int, int], *, scaled: bool
) -> ModelConfig:
    """Join both stacks; scaled: the output is the embedding, and hidden states are scaled for it (T5 1.0)."""
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        encoder=_stack(sizes, decoder=False, num_layers=depths[0]),
        decoder=_stack(sizes, decoder=True, num_layers=depths[1]),
        output="lm",
        tied=scaled,
        logit_scale=sizes["hidden_size"] ** -0.5 if scaled else 1.0,
    )


def _config(data: Config, *, family: str) -> ModelConfig:
    """Read the BERT-like config.json that users write beside a T5 checkpoint."""
    hidden_size, heads, num_layers = (
        read(data, key, int) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    act = data.get("hidden_act", "relu" if family == "t5.1.0" else ["gelu", "linear"])
    gated = isinstance(act, list)
    if gated and (len(act) != 2 or act[1] != "linear"):
        raise ConfigError(f"hidden_act is {act!r} in config.json; expected a name, or a pair whose second is 'linear'")
    sizes = {
        "hidden_size": hidden_size,
        "num_heads": heads,
        **head_sizes(data, hidden_size, heads),
        "feed_forward": read(data, "intermediate_size", int),
        "embedding_size": hidden_size,
        "gated": gated,
        "activation": activation({"hidden_act": act[0] if gated else act}, "gelu_tanh"),
        "dropout": float(data.get("hidden_dropout_prob") or 0),
        "attention_dropout": float(data.get("attention_probs_dropout_prob") or 0),
    }
    return _model(family, read(data, "vocab_size", int), sizes, (num_layers, num_layers), scaled=family == "t5.1.0")


def _original(config: ModelConfig) -> dict[str, Any]:
    stack = config.main
    act = {"gelu_tanh": "gelu"}.get(stack.activation, stack.activation)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": stack.hidden_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.num_heads,
        "attention_head_size": stack.head_dim,
        "intermediate_size": stack.feed_forward,
        "hidden_act": [act, "linear"] if stack.gated else act,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention_dropout,
    }


def _stack_rows(config: ModelConfig, names: Mapping[str, str], how: str, relative: str) -> list[Row]:
    """Make the rows of both stacks; how, relative: of matrices, and of the table of relative positions."""
    rows = []
    for stack, side in ((config.encoder, "encoder"), (config.decoder, "decoder")):
        if stack is None:
            continue
        first = names["block"].format(side=side, i=0, j=0)
        rows.append(row(f"{side}.relative.weight", first + names["relative"], relative))
        rows.append(row(f"{side}.norm.weight", names["final"].format(side=side)))
        for i in range(stack.num_layers):
            for j, sublayer in enumerate(stack.order):
                ours, theirs = f"{side}.blocks.{i}.{sublayer.kind}", names["block"].format(side=side, i=i, j=j)
                parts = (_GATED if stack.gated else _WI) if sublayer.kind == "feed_forward" else _QKVO
                template = theirs + names[sublayer.kind]
                rows.append(row(f"{ours}_pre.weight", theirs + names["norm"]))
                rows += [row(f"{ours}.{own}.weight", template.format(part), how) for own, part in parts.items()]
    return rows


def _rows(config: ModelConfig, *, names: Mapping[str, str], family: str) -> list[Row]:
    untied = [] if family == "t5.1.0" else [row("output.weight", "decoder/logits/kernel", "transpose")]
    return [row("token.weight", "shared/embedding"), *untied, *_stack_rows(config, names, "transpose", "same")]


def _huggingface_config(data: Config, *, family: str) -> ModelConfig:
    """Read Hugging Face's config.json, in which "tie_word_embeddings" tells whether the output is scaled.

    transformers 5 writes it as true for every T5, with "scale_decoder_outputs" beside it, and ties what the file does
    not hold apart; its mT5 never scales. Whether the output is tied is seen in the file (`heads`).
    """
    mt5 = family == "mt5.1.1"
    gate = read(data, "feed_forward_proj", str, "gated-gelu" if mt5 else "relu")
    gated = gate.startswith("gated-")
    dropout = float(data.get("dropout_rate", 0.1))
    sizes = {
        "hidden_size": read(data, "d_model", int),
        "num_heads": read(data, "num_heads", int),
        "head_dim": read(data, "d_kv", int),
        "key_dim": read(data, "d_kv", int),
        "feed_forward": read(data, "d_ff", int),
        "embedding_size": read(data, "d_model", int),
        "buckets": data.get("relative_attention_num_buckets", 32),
        "bucket_distance": data.get("relative_attention_max_distance", 128),
        "gated": gated,
        # transformers runs every "gated-gelu" as the tanh approximation.
        "activation": activation(
            {"feed_forward_proj": gate.removeprefix("gated-")},
            "gelu_tanh" if gated else "gelu_erf",
            "feed_forward_proj",
        ),
        "norm_eps": float(data.get("layer_norm_epsilon", 1e-6)),
        "dropout": dropout,
        "attention_dropout": dropout,
    }
    num_layers = read(data, "num_layers", int)
    depths = num_layers, data.get("num_decoder_layers") or num_layers
    scaled = not mt5 and data.get("scale_decoder_outputs", data.get("tie_word_embeddings") is not False)
    if family == "t5.1.0" and not scaled:
        family = "t5.1.1"
    return _model(family, read(data, "vocab_size", int), sizes, depths, scaled=scaled)


def _huggingface_original(config: ModelConfig) -> dict[str, Any]:
    stack, encoder = config.main, config.encoder
    if encoder is None:
        raise ConfigError("encoder is missing; Hugging Face has no T5 that is a decoder alone")
    plain = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}.get(stack.activation, stack.activation)
    # "gated-gelu" is the tanh approximation; only its long name means the exact one.
    gated = {"gelu_tanh": "gelu", "gelu_erf": "gelu_python"}.get(stack.activation, stack.activation)
    word = "MT5" if config.family == "mt5.1.1" else "T5"
    data: dict[str, Any] = {
        "model_type": word.lower(),
        "architectures": [word + ("ForConditionalGeneration" if config.decoder else "EncoderModel")],
        "vocab_size": config.vocab_size,
        "d_model": stack.hidden_size,
        "d_kv": stack.head_dim,
        "d_ff": stack.feed_forward,
        "num_heads": stack.num_heads,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": stack.num_layers,
        "relative_attention_num_buckets": stack.buckets,
        "relative_attention_max_distance": stack.bucket_distance,
        "feed_forward_proj": f"gated-{gated}" if stack.gated else plain,
        "dropout_rate": stack.dropout,
        "layer_norm_epsilon": stack.norm_eps,
        "tie_word_embeddings": config.tied,
        "is_encoder_decoder": config.decoder is not None,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    if word == "T5":
        data["scale_decoder_outputs"] = config.logit_scale != 1.0
    return data


def _huggingface_rows(config: ModelConfig) -> list[Row]:
    untied = [] if config.tied else [row("output.weight", "lm_head.weight")]
    return [row("token.weight", "shared.weight"), *untied, *_stack_rows(config, _HUGGINGFACE, "same", "transpose")]


def _family(name: str, names: Mapping[str, str], model_type: str) -> Family:
    first = "encoder/block_000/layer_00"
    wi = "wi" if name == "t5.1.0" else "wi_0"
    return Family(
        name,
        tensorflow=Names(
            config=partial(_config, family=name),
            original=_original,
            rows=partial(_rows, names=names, family=name),
            sizes=Sizes(
                token="shared/embedding",
                layer="encoder/block_{:03d}/",
                query=f"{first}0/SelfAttention/q",
                feed_forward=f"{first}1/DenseReluDense/{wi}/kernel",
                heads=f"{first}0/SelfAttention/relative_attention_bias",
            ),
            heads={"decoder": names["final"].format(side="decoder")},
            marks=(names["final"].format(side="encoder"),),
            dropped={r".*/EncDecAttention/relative_attention_bias$": "a table that the published T5 never reads"},
        ),
        huggingface=Names(
            config=partial(_huggingface_config, family=name),
            original=_huggingface_original,
            rows=_huggingface_rows,
            sizes=Sizes(
                token="shared.weight",
                layer="encoder.block.{}.",
                query="encoder.block.0.layer.0.SelfAttention.q.weight",
                feed_forward=f"encoder.block.0.layer.1.DenseReluDense.{wi}.weight",
                columns=False,
            ),
            heads={"decoder": "decoder.final_layer_norm.weight", "untied": "lm_head.weight"},
            repeats=REPEATS,
            dropped={
                r"^(encoder|decoder)\.embed_tokens\.weight$": "the same tensor as shared.weight",
                r"^lm_head\.weight$": "the same tensor as shared.weight",
                r".*\.EncDecAttention\.relative_attention_bias\.weight$": "a table that the published T5 never reads",
            },
            model_type=model_type,
            style="t5",
        ),
    )


T5_1_0 = _family("t5.1.0", _MESH, "t5")
T5_1_1 = _family("t5.1.1", _MESH, "t5")
MT5_1_1 = _family("mt5.1.1", _MESH_RMS, "mt5")
