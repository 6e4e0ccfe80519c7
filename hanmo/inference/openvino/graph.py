"""The network as an OpenVINO graph, built from a ModelConfig: one function for each kind of sub-layer.

Knows the formulas of hanmo.nn and no family's name. Positions, masks and distances are inputs (inputs.py).

    cache of one layer:  ReadValue ─ Gather by "beam_idx" ─ Concat ─┬─ attention      which the CPU plugin runs as one
                                                      new tokens ─┘ └─ Assign         operation, in place
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from array_api_compat import numpy as xp
from openvino import opset15 as op
from openvino.op.util import Variable, VariableInfo

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError
from hanmo.inference.openvino.weights import Node, Weights
from hanmo.nn.position import sinusoidal

__all__ = ["build_decoder", "build_encoder"]


@dataclass
class _Graph:
    """What is built so far: inputs by name, states that are assigned, scores for the next layer (RealFormer)."""

    weights: Weights
    config: ModelConfig
    stack: StackConfig
    inputs: dict[str, Node] = field(default_factory=dict)
    states: list[Node] = field(default_factory=list)
    scores: Node | None = None

    def input(self, name: str, dtype: str, shape: Sequence[int]) -> Node:
        """Give the input of that name, made when it is first needed; -1 is any size."""
        if name not in self.inputs:
            node = op.parameter(ov.PartialShape(list(shape)), ov.Type.f32 if dtype == "f32" else ov.Type.i32)
            node.set_friendly_name(name)
            node.output(0).set_names({name})
            self.inputs[name] = node
        return self.inputs[name]


def build_decoder(weights: Weights, config: ModelConfig) -> ov.Model:
    """Build the graph of prompts and steps: ids [b, n] → "logits" [b, keep, vocab] of the last `keep` tokens."""
    graph = _Graph(weights, config, config.main)
    name = "decoder" if config.decoder else "encoder"
    x = _stack(graph, name, cached=True)
    keep = graph.input("keep", "i32", [1])
    x = op.slice(x, op.negative(keep), _ints(np.iinfo(np.int32).max), _ints(1), _ints(1))
    return _model(graph, {"logits": _output(graph, x)})


def build_encoder(weights: Weights, config: ModelConfig) -> ov.Model:
    """Build the graph of an encoder: ids [b, n] → "hidden" [b, n, hidden_size].

    With a decoder, also the keys and values of its cross-attention: "memory.LAYER.key" [b, heads, n, key_dim] and
    "memory.LAYER.value". Without one, the heads' outputs: "logits" [k, vocab] of the tokens at the input "places" [k],
    indices into the flattened rows; "pooled" [b, hidden_size], "nsp" [b, 2], "discriminator" [b, n, 1].
    """
    assert config.encoder is not None
    graph = _Graph(weights, config, config.encoder)
    x = _stack(graph, "encoder", cached=False)
    results = {"hidden": x}
    if config.decoder is not None:
        graph.stack = config.decoder
        for layer in range(config.decoder.num_layers):
            block = 0 if config.decoder.shared_layers else layer
            k, v = _split(graph, x, f"decoder.blocks.{block}.cross.key_value", "kv")
            results |= {f"memory.{layer}.key": k, f"memory.{layer}.value": v}
    else:
        results |= _heads(graph, x)
    return _model(graph, results)


def _model(graph: _Graph, results: dict[str, Node]) -> ov.Model:
    made = []
    for name, node in results.items():
        result = op.result(node)
        result.output(0).set_names({name})
        made.append(result)
    return ov.Model(made, graph.states, list(graph.inputs.values()), "hanmo")


def _stack(graph: _Graph, name: str, *, cached: bool) -> Node:
    stack = graph.stack
    if stack.condition:
        raise ConfigError(
            f"condition is {stack.condition}; the OpenVINO engine has no conditional norms: use the torch engine"
        )
    x = _embedding(graph, name)
    for layer in range(stack.num_layers):
        block = f"{name}.blocks.{0 if stack.shared_layers else layer}"
        for sublayer in stack.order:
            path = f"{block}.{sublayer.kind}"
            h = _norm(graph, x, f"{path}_pre") if sublayer.pre else x
            if sublayer.kind == "feed_forward":
                h = _feed_forward(graph, h, path)
            elif sublayer.kind == "cross":
                h = _cross(graph, h, path, layer)
            else:
                h = _attention(graph, h, path, layer, cached=cached)
            x = op.add(x, h)
            if sublayer.post:
                x = _norm(graph, x, f"{path}_post")
    return _norm(graph, x, f"{name}.norm") if stack.final_norm else x


def _embedding(graph: _Graph, name: str) -> Node:
    stack, weights = graph.stack, graph.weights
    path = f"{name}.embedding"
    x = weights.rows("token.weight", graph.input("ids", "i32", [-1, -1]))
    if stack.segments:
        table = "token.weight" if stack.shared_segments else f"{path}.segment.weight"
        x = op.add(x, weights.rows(table, graph.input("segments", "i32", [-1, -1])))
    if stack.position == "learned":
        positions = graph.input("positions", "i32", [-1, -1])
        x = op.add(x, _learned(stack, weights, f"{path}.position.weight", positions))
    elif stack.position == "sinusoidal":
        x = op.add(x, graph.input("waves", "f32", [-1, -1, stack.embedding_size]))
    if stack.embedding_norm:
        x = _norm(graph, x, f"{path}.norm", eps=stack.embedding_norm_eps)
    return x if stack.embedding_size == stack.hidden_size else weights.linear(x, f"{path}.project")


def _learned(stack: StackConfig, weights: Weights, name: str, positions: Node) -> Node:
    if not stack.hierarchical:
        return weights.rows(name, positions)
    alpha = stack.hierarchical
    table = weights.vector(name)
    first = op.gather(table, _ints(0), _ints(0))
    base = op.multiply(op.subtract(table, op.multiply(first, _number(alpha))), _number(1 / (1 - alpha)))
    count = np.int32(stack.positions or 1)
    coarse = op.gather(base, op.divide(positions, count), _ints(0))
    fine = op.gather(base, op.floor_mod(positions, count), _ints(0))
    return op.add(op.multiply(coarse, _number(alpha)), op.multiply(fine, _number(1 - alpha)))


def _norm(graph: _Graph, x: Node, name: str, *, eps: float | None = None, kind: str | None = None) -> Node:
    eps, kind = eps or graph.stack.norm_eps, kind or graph.stack.norm
    if kind == "layer":
        x = op.mvn(x, _ints(-1), True, eps, "inside_sqrt")
    else:
        square = op.reduce_mean(op.power(x, _number(2)), _ints(-1), True)
        x = op.multiply(x, op.divide(_number(1), op.sqrt(op.add(square, _number(eps)))))
    if f"{name}.weight" in graph.weights:
        x = op.multiply(x, graph.weights.vector(f"{name}.weight"))
    return op.add(x, graph.weights.vector(f"{name}.bias")) if f"{name}.bias" in graph.weights else x


def _feed_forward(graph: _Graph, x: Node, name: str) -> Node:
    if graph.stack.gated:
        both = graph.weights.linear(x, f"{name}.gate_input")
        gate, x = op.split(both, _ints(-1, scalar=True), 2).outputs()
        x = op.multiply(_activate(gate, graph.stack.activation), x)
    else:
        x = _activate(graph.weights.linear(x, f"{name}.input"), graph.stack.activation)
    return graph.weights.linear(x, f"{name}.output")


def _attention(graph: _Graph, x: Node, name: str, layer: int, *, cached: bool) -> Node:
    stack = graph.stack
    q, k, v = _split(graph, x, f"{name}.query_key_value", "qkv")
    if stack.position == "rotary":
        q, k = _rotate(graph, q), _rotate(graph, k)
    if cached:
        k, v = (_cache(graph, new, f"{layer}.{word}") for new, word in ((k, "key"), (v, "value")))
    mask = graph.input("mask", "f32", [-1, 1, -1, -1])
    if stack.position == "buckets":
        side = name.partition(".")[0]
        mask = op.add(_bias(graph, f"{side}.relative.weight", "buckets"), mask)
    if stack.position == "relative" or stack.score_residual != "none":
        out = _plain_attention(graph, q, k, v, mask)
    else:
        out = op.scaled_dot_product_attention(q, k, v, mask, _number(stack.scale))
    return graph.weights.linear(_merge(stack, out), f"{name}.output")


def _cross(graph: _Graph, x: Node, name: str, layer: int) -> Node:
    stack = graph.stack
    (q,) = _split(graph, x, f"{name}.query", "q")
    k = graph.input(f"memory.{layer}.key", "f32", [-1, stack.num_heads, -1, stack.key_dim])
    v = graph.input(f"memory.{layer}.value", "f32", [-1, stack.num_heads, -1, stack.head_dim])
    mask = graph.input("memory_mask", "f32", [-1, 1, 1, -1])
    if stack.cross_positions:
        mask = op.add(_bias(graph, "decoder.relative.weight", "memory_buckets"), mask)
    out = op.scaled_dot_product_attention(q, k, v, mask, _number(stack.scale))
    return graph.weights.linear(_merge(stack, out), f"{name}.output")


def _split(graph: _Graph, x: Node, name: str, letters: str) -> list[Node]:
    """Project x [b, n, hidden_size] and split it into heads: [b, heads, n, size] for each letter of "qkv" given."""
    stack = graph.stack
    sizes = [stack.head_dim if letter == "v" else stack.key_dim for letter in letters]
    y = graph.weights.linear(x, name)
    widths = np.array([stack.num_heads * size for size in sizes])
    parts = op.variadic_split(y, _ints(-1, scalar=True), widths).outputs() if len(sizes) > 1 else [y]
    return [
        op.transpose(op.reshape(part, np.array([0, 0, stack.num_heads, size]), True), np.array([0, 2, 1, 3]))
        for part, size in zip(parts, sizes, strict=True)
    ]


def _merge(stack: StackConfig, x: Node) -> Node:
    return op.reshape(op.transpose(x, np.array([0, 2, 1, 3])), np.array([0, 0, stack.num_heads * stack.head_dim]), True)


def _cache(graph: _Graph, new: Node, name: str) -> Node:
    """Append new keys or values [b, heads, n, size] to the state, whose rows are selected by "beam_idx"."""
    shape = new.get_output_partial_shape(0)
    heads, size = shape[1].get_length(), shape[3].get_length()
    batch = op.gather(op.shape_of(graph.inputs["ids"], "i64"), _ints(0), _ints(0))
    empty = op.broadcast(_number(0), op.concat([batch, np.array([heads, 0, size])], 0))
    info = VariableInfo()
    info.data_shape, info.data_type = ov.PartialShape([-1, heads, -1, size]), ov.Type.f32
    info.variable_id = f"cache.{name}"
    variable = Variable(info)
    past = op.gather(op.read_value(empty, variable), graph.input("beam_idx", "i32", [-1]), _ints(0, scalar=True))
    both = op.concat([past, new], 2)
    graph.states.append(op.assign(both, variable))
    return both


def _rotate(graph: _Graph, x: Node) -> Node:
    """Rotate the pairs (2i, 2i + 1) of x [b, heads, n, d] by the angles of the inputs "cosines" and "sines"."""
    size = graph.stack.key_dim
    cos, sin = (graph.input(name, "f32", [-1, 1, -1, size // 2, 1]) for name in ("cosines", "sines"))
    pairs = op.reshape(x, np.array([0, 0, 0, size // 2, 2]), True)
    even, odd = op.split(pairs, _ints(-1, scalar=True), 2).outputs()
    turned = op.concat(
        [
            op.subtract(op.multiply(even, cos), op.multiply(odd, sin)),
            op.add(op.multiply(odd, cos), op.multiply(even, sin)),
        ],
        -1,
    )
    return op.reshape(turned, np.array([0, 0, 0, size]), True)


def _bias(graph: _Graph, name: str, distances: str) -> Node:
    """Look up T5's bias of all pairs of tokens: [b or 1, heads, n, m]."""
    rows = graph.input(distances, "i32", [-1, -1, -1])
    found = op.gather(graph.weights.vector(name), rows, _ints(1, scalar=True))  # [heads, b, n, m]
    return op.transpose(found, np.array([1, 0, 2, 3]))


def _plain_attention(graph: _Graph, q: Node, k: Node, v: Node, mask: Node) -> Node:
    """Compute attention by its formula where the scores are needed: NEZHA's distances, RealFormer's residual."""
    stack = graph.stack
    scores = op.matmul(q, k, False, True)
    index = table = None
    if stack.position == "relative":
        table = op.constant(sinusoidal(np.arange(2 * stack.relative_clip + 1), stack.key_dim, xp))
        index = op.unsqueeze(graph.input("distances", "i32", [-1, -1, -1]), _ints(1))
        index = op.broadcast(index, op.shape_of(scores, "i64"), "bidirectional")
        scores = op.add(scores, op.gather_elements(op.matmul(q, table, False, True), index, -1))
    own = scores = op.multiply(scores, _number(stack.scale))
    if graph.scores is not None:
        scores = op.add(scores, graph.scores)
    graph.scores = {"cumulative": scores, "previous": own}.get(stack.score_residual)
    shares = op.softmax(op.add(scores, mask), -1)
    out = op.matmul(shares, v, False, False)
    if index is None:
        return out
    clipped = op.concat([op.shape_of(out, "i64"), np.array([2 * stack.relative_clip + 1])], 0)
    clipped = op.gather(clipped, np.array([0, 1, 2, 4]), _ints(0, scalar=True))
    nothing = op.broadcast(_number(0), clipped)
    by_row = op.scatter_elements_update(nothing, index, shares, _ints(-1, scalar=True), "sum")
    return op.add(out, op.matmul(by_row, table, False, False))


def _heads(graph: _Graph, x: Node) -> dict[str, Node]:
    config, weights = graph.config, graph.weights
    results = {}
    if config.output != "none":
        tokens = op.reshape(x, np.array([-1, config.main.hidden_size]), False)
        results["logits"] = _output(graph, op.gather(tokens, graph.input("places", "i32", [-1]), _ints(0, scalar=True)))
    if config.pool != "none":
        first = op.gather(x, _ints(0, scalar=True), _ints(1, scalar=True))
        results["pooled"] = _activate(weights.linear(first, "pooler.dense"), config.pool)
    if config.nsp:
        results["nsp"] = weights.linear(results["pooled"], "pooler.nsp")
    if config.discriminator:
        hidden = _activate(weights.linear(x, "discriminator.dense"), config.head_activation)
        results["discriminator"] = weights.linear(hidden, "discriminator.output")
    return results


def _output(graph: _Graph, x: Node) -> Node:
    config, weights = graph.config, graph.weights
    if config.logit_scale != 1.0:
        x = op.multiply(x, _number(config.logit_scale))
    if config.output == "mlm":
        x = _activate(weights.linear(x, "output.dense"), config.head_activation)
        x = _norm(graph, x, "output.norm", eps=config.head_norm_eps, kind="layer")
    elif config.main.embedding_size != config.main.hidden_size:
        x = weights.linear(x, "output.project")
    x = weights.product(x, "token.weight" if config.tied else "output.weight")
    return op.add(x, weights.vector("output.bias")) if "output.bias" in weights else x


_ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "gelu_erf": lambda x: op.gelu(x, "erf"),
    "gelu_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
    "silu": op.swish,
    "tanh": op.tanh,
    "sigmoid": op.sigmoid,
    "elu": lambda x: op.elu(x, 1.0),
    "selu": lambda x: op.selu(x, _number(1.6732632423543772), _number(1.0507009873554805)),
    "softplus": op.softplus,
    "softsign": op.softsign,
    "leaky_relu": lambda x: op.prelu(x, _number(0.2)),
    "squared_relu": lambda x: op.power(op.relu(x), _number(2)),
    "linear": lambda x: x,
}


def _activate(x: Node, name: str) -> Node:
    return _ACTIVATIONS[name](x)


def _ints(value: int, *, scalar: bool = False) -> Node:
    return op.constant(np.array(value if scalar else [value], np.int64))


def _number(value: float) -> Node:
    return op.constant(np.array(value, np.float32))
