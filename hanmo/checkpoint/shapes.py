"""Measure a network by the shapes of its tensors, and derive the config.json that they imply.

Knows which tensors tell a size (families.Sizes) and how configurations call it. Reads no tensor, imports no torch.
"""

import re
from collections.abc import Mapping
from typing import Any

from hanmo.checkpoint.source import TensorInfo
from hanmo.errors import CheckpointError
from hanmo.families import Names, keys

TASK_HEAD = "head."
"""Prefix of the tensors of a task's head, which are saved beside a network's own."""

HEAD_DIM = 64
"""Features of a head in nearly every published model; no shape tells how many heads there are."""

_STYLES = {"gpt2": keys.GPT2, "t5": keys.T5}
_COMMON = ("vocab_size", "num_decoder_layers", "feed_forward_proj", "tie_word_embeddings")
_FIELDS = {key: ours for ours, key in keys.BERT.items()}


def bare(names: Names, name: str, tensors: Mapping[str, object]) -> str:
    """Return a tensor's name as the file spells it: without the prefix where the bare network was saved."""
    return name.removeprefix(names.prefix) if names.prefix and name not in tensors else name


def measure(names: Names, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Return the sizes that the shapes show: vocab_size, embedding_size, hidden_size, num_layers and more.

    query: heads times the features of a key.   positions, segments, num_heads, num_decoder_layers: where shown.
    Raises CheckpointError if what should be a matrix is none.
    """
    of = names.sizes

    def shape(name: str) -> tuple[int, ...]:
        info = tensors.get(bare(names, name, tensors)) if name else None
        found = info.shape if info else ()
        return found[1:] if len(found) == 3 and found[0] == 1 else found  # a convolution of width 1

    for name in (of.token, of.query, of.feed_forward):
        if len(found := shape(name)) != 2 or 0 in found:
            raise CheckpointError(f"{name} is of the shape {list(found)}; expected a matrix that is not empty")
    token, query, inner = shape(of.token), shape(of.query), shape(of.feed_forward)
    if not of.columns:
        query, inner = query[::-1], inner[::-1]
    layer = of.layer if of.token in tensors else of.layer.removeprefix(names.prefix)
    sizes = {
        "vocab_size": token[0],
        "embedding_size": token[1],
        "hidden_size": query[0],
        "num_layers": _depth(layer, tensors),
        "feed_forward": inner[1],
        "query": query[1],
    }
    for key, name in (("positions", of.position), ("segments", of.segment), ("num_heads", of.heads)):
        if found := shape(name):
            sizes[key] = found[0]
    if layer.startswith("encoder") and (num_layers := _depth(layer.replace("encoder", "decoder", 1), tensors)):
        sizes["num_decoder_layers"] = num_layers
    return sizes


def _depth(layer: str, tensors: Mapping[str, object]) -> int:
    before, after = re.split(r"\{.*?\}", layer)
    pattern = re.compile(rf"{re.escape(before)}(\d{{1,6}}){re.escape(after)}")
    return len({int(match[1]) for name in tensors if (match := pattern.match(name))})


def derive(names: Names, sizes: Mapping[str, int], tensors: Mapping[str, object]) -> dict[str, Any]:
    """Return the config.json that the shapes imply, in the format's style; heads of 64 if nothing tells them."""
    query = sizes["query"]
    heads = sizes.get("num_heads") or (query // HEAD_DIM if query % HEAD_DIM == 0 else 1)
    data: dict[str, Any] = {
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["hidden_size"],
        "embedding_size": sizes["embedding_size"],
        "num_hidden_layers": sizes["num_layers"],
        "num_attention_heads": heads,
        "attention_head_size": query // heads,
        "intermediate_size": sizes["feed_forward"],
        "max_position_embeddings": sizes.get("positions", 512),
        "type_vocab_size": sizes.get("segments", 0),
    }
    if names.style == "t5":
        gated = "wi_0" in names.sizes.feed_forward
        data["num_decoder_layers"] = sizes.get("num_decoder_layers", sizes["num_layers"])
        data["feed_forward_proj"] = "gated-gelu" if gated else "relu"
        data["tie_word_embeddings"] = not gated or "lm_head.weight" not in tensors
    return {translate(names, key): value for key, value in data.items() if translate(names, key)}


def translate(names: Names, key: str) -> str:
    """Return a key of BERT's config.json in the format's style; "" where it has none."""
    if names.style == "bert" or key in _COMMON:
        return key
    return _STYLES[names.style].get(_FIELDS.get(key, ""), "")
