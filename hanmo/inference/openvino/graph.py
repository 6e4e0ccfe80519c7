"""The network as an OpenVINO graph, built from a ModelConfig: one method for each kind of sub-layer.

Knows the formulas of hanmo.nn and no family's name. Positions, masks and distances are inputs (rows.py).

    cache of one layer:  ReadValue ─ Gather by "beam_idx" ─ Concat ─┬─ attention      which the CPU plugin runs as one
                                                      new tokens ─┘ └─ Assign         operation, in place
"""

from collections.abc import Callable

import numpy as np
import openvino as ov
from array_api_compat import numpy as xp
from openvino import opset15 as op
from openvino.op.util import Variable, VariableInfo

from hanmo.config import ModelConfig, StackConfig
from hanmo.errors import ConfigError
from hanmo.inference.openvino.weights import Node, Weights
from hanmo.nn.position import sinusoidal

__all__ = ["Graph", "build_decoder", "build_encoder"]

F32 = ov.Type.f32

_ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "gelu_erf": lambda x: op.gelu(x, "erf"),
    "gelu_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
    "silu": op.swish,
    "tanh": op.tanh,
    "sigmoid": op.sigmoid,
    "elu": lambda x: op.elu(x, 1.0),
    "selu": lambda x: op.selu(x, np.float32(1.6732632423543772), np.float32(1.0507009873554805)),
    "softplus": op.softplus,
    "softsign": op.softsign,
    "leaky_relu": lambda x: op.prelu(x, np.float32(0.2)),
    "squared_relu": lambda x: op.power(op.relu(x), np.float32(2)),
    "linear": lambda x: x,
}


def build_decoder(weights: Weights, config: ModelConfig) -> ov.Model:
    """Build the graph of prompts and steps: ids [b, n] → "logits" [b, keep, vocab] of the last `keep` tokens."""
    graph = Graph(weights, config, config.main)
    x = graph.stack_output("decoder" if config.decoder else "encoder", cached=True)
    x = op.slice(x, op.negative(graph.input("keep", [1])), [np.iinfo(np.int32).max], [1], [1])
    return graph.model({"logits": graph.logits(x)})


def build_encoder(weights: Weights, config: ModelConfig) -> ov.Model:
    """Build the graph of an encoder: ids [b, n] → "hidden" [b, n, hidden_size].

    With a decoder, also the keys and values of its cross-attention: "memory.LAYER.key" [b, heads, n, key_dim] and
    "memory.LAYER.value". Without one, the heads' outputs: "logits" [k, vocab] of the tokens at the input "places" [k],
    indices into the flattened rows; "pooled" [b, hidden_size], "nsp" [b, 2], "discriminator" [b, n, 1].
    """
    assert config.encoder is not None
    graph = Graph(weights, config, config.encoder)
    x = graph.stack_output("encoder", cached=False)
    results = {"hidden": x}
    if config.decoder is not None:
        graph.stack = config.decoder
        for layer in range(config.decoder.num_layers):
            block = 0 if config.decoder.shared_layers else layer
            k, v = graph.heads(x, f"decoder.blocks.{block}.cross.key_value", "kv")
            results |= {f"memory.{layer}.key": k, f"memory.{layer}.value": v}
        return graph.model(results)
    if config.output != "none":
        tokens = op.reshape(x, [-1, config.main.hidden_size], False)
        results["logits"] = graph.logits(op.gather(tokens, graph.input("places", [-1]), 0))
    if config.pool != "none":
        pooled = weights.linear(op.gather(x, 0, 1), "pooler.dense")
        results["pooled"] = _ACTIVATIONS[config.pool](pooled)
    if config.nsp:
        results["nsp"] = weights.linear(results["pooled"], "pooler.nsp")
    if config.discriminator:
        hidden = _ACTIVATIONS[config.head_activation](weights.linear(x, "discriminator.dense"))
        results["discriminator"] = weights.linear(hidden, "discriminator.output")
    return graph.model(results)


class Graph:
    """A graph that is being built: its inputs by name, states to assign, scores for the next layer (RealFormer).

    Methods take nodes and return nodes; names are those of the weights.
    """

    def __init__(self, weights: Weights, config: ModelConfig, stack: StackConfig) -> None:
        self.weights, self.config, self.stack = weights, config, stack
        self.inputs: dict[str, Node] = {}
        self.states: list[Node] = []
        self.scores: Node | None = None

    def input(self, name: str, shape: list[int], dtype: ov.Type = ov.Type.i32) -> Node:
        """Give the input of that name, made when it is first needed; -1 is any size."""
        if name not in self.inputs:
            node = self.inputs[name] = op.parameter(ov.PartialShape(shape), dtype)
            node.set_friendly_name(name)
            node.output(0).set_names({name})
        return self.inputs[name]

    def model(self, results: dict[str, Node]) -> ov.Model:
        nodes = {name: op.result(node) for name, node in results.items()}
        for name, node in nodes.items():
            node.output(0).set_names({name})
        return ov.Model(list(nodes.values()), self.states, list(self.inputs.values()), "hanmo")

    def stack_output(self, name: str, *, cached: bool) -> Node:
        stack, weights = self.stack, self.weights
        if stack.condition:
            raise ConfigError(
                f"condition is {stack.condition}; the OpenVINO engine has no conditional norms: use the torch engine"
            )
        x = self.embedding(f"{name}.embedding")
        for layer in range(stack.num_layers):
            for sublayer in stack.order:
                path = f"{name}.blocks.{0 if stack.shared_layers else layer}.{sublayer.kind}"
                h = self.norm(x, f"{path}_pre") if sublayer.pre else x
                if sublayer.kind != "feed_forward":
                    h = self.attention(h, path, layer, cached=cached)
                elif stack.gated:
                    gate, h = op.split(weights.linear(h, f"{path}.gate_input"), -1, 2).outputs()
                    h = op.multiply(_ACTIVATIONS[stack.activation](gate), h)
                else:
                    h = _ACTIVATIONS[stack.activation](weights.linear(h, f"{path}.input"))
                x = op.add(x, weights.linear(h, f"{path}.output"))
                x = self.norm(x, f"{path}_post") if sublayer.post else x
        return self.norm(x, f"{name}.norm") if stack.final_norm else x

    def embedding(self, path: str) -> Node:
        stack, weights = self.stack, self.weights
        x = weights.rows("token.weight", self.input("ids", [-1, -1]))
        if stack.segments:
            table = "token.weight" if stack.shared_segments else f"{path}.segment.weight"
            x = op.add(x, weights.rows(table, self.input("segments", [-1, -1])))
        if stack.position == "learned":
            name, positions = f"{path}.position.weight", self.input("positions", [-1, -1])
            if stack.hierarchical:
                alpha, rest = np.float32(stack.hierarchical), np.float32(1 - stack.hierarchical)
                table, count = weights.constant(name), np.int32(stack.positions or 1)
                base = op.subtract(table, op.multiply(op.gather(table, [0], [0]), alpha))
                base = op.multiply(base, np.float32(1 / (1 - stack.hierarchical)))
                coarse = op.gather(base, op.divide(positions, count), [0])
                fine = op.gather(base, op.floor_mod(positions, count), [0])
                x = op.add(x, op.add(op.multiply(coarse, alpha), op.multiply(fine, rest)))
            else:
                x = op.add(x, weights.rows(name, positions))
        elif stack.position == "sinusoidal":
            x = op.add(x, self.input("waves", [-1, -1, stack.embedding_size], F32))
        if stack.embedding_norm:
            x = self.norm(x, f"{path}.norm", eps=stack.embedding_norm_eps)
        return x if stack.embedding_size == stack.hidden_size else weights.linear(x, f"{path}.project")

    def norm(self, x: Node, name: str, *, eps: float | None = None, kind: str | None = None) -> Node:
        eps, kind = eps or self.stack.norm_eps, kind or self.stack.norm
        if kind == "layer":
            x = op.mvn(x, [-1], True, eps, "inside_sqrt")
        else:
            square = op.reduce_mean(op.power(x, np.float32(2)), [-1], True)
            x = op.multiply(x, op.divide(np.float32(1), op.sqrt(op.add(square, np.float32(eps)))))
        if f"{name}.weight" in self.weights:
            x = op.multiply(x, self.weights.constant(f"{name}.weight"))
        return op.add(x, self.weights.constant(f"{name}.bias")) if f"{name}.bias" in self.weights else x

    def attention(self, x: Node, name: str, layer: int, *, cached: bool) -> Node:
        """Attend to the stack's own tokens or, by a name that ends in "cross", to an encoder's: [b, n, values]."""
        stack = self.stack
        side, *_, kind = name.split(".")
        if kind == "cross":
            (q,) = self.heads(x, f"{name}.query", "q")
            k = self.input(f"memory.{layer}.key", [-1, stack.num_heads, -1, stack.key_dim], F32)
            v = self.input(f"memory.{layer}.value", [-1, stack.num_heads, -1, stack.head_dim], F32)
            mask = self.input("memory_mask", [-1, 1, 1, -1], F32)
            buckets = "memory_buckets" if stack.cross_positions else None
        else:
            q, k, v = self.heads(x, f"{name}.query_key_value", "qkv")
            if stack.position == "rotary":
                q, k = self.rotated(q), self.rotated(k)
            if cached:
                k, v = self.cached(k, f"cache.{layer}.key"), self.cached(v, f"cache.{layer}.value")
            mask = self.input("mask", [-1, 1, -1, -1], F32)
            buckets = "buckets" if stack.position == "buckets" else None
        if buckets is not None:  # T5's bias of all pairs of tokens
            table = self.weights.constant(f"{side}.relative.weight")
            bias = op.gather(table, self.input(buckets, [-1, -1, -1]), 1)  # [heads, b, n, m]
            mask = op.add(op.transpose(bias, [1, 0, 2, 3]), mask)
        if kind == "attention" and (stack.position == "relative" or stack.score_residual != "none"):
            out = self.plain_attention(q, k, v, mask)
        else:
            out = op.scaled_dot_product_attention(q, k, v, mask, np.float32(stack.scale))
        return op.reshape(op.transpose(out, [0, 2, 1, 3]), [0, 0, stack.num_heads * stack.head_dim], True)

    def heads(self, x: Node, name: str, letters: str) -> list[Node]:
        """Project x [b, n, hidden_size] and split it into heads: [b, heads, n, size] for each letter of "qkv" given."""
        count = self.stack.num_heads
        sizes = [self.stack.head_dim if letter == "v" else self.stack.key_dim for letter in letters]
        y = self.weights.linear(x, name)
        parts = op.variadic_split(y, -1, [count * size for size in sizes]).outputs() if len(sizes) > 1 else [y]
        split = [op.reshape(part, [0, 0, count, size], True) for part, size in zip(parts, sizes, strict=True)]
        return [op.transpose(part, [0, 2, 1, 3]) for part in split]

    def cached(self, new: Node, name: str) -> Node:
        """Append new keys or values [b, heads, n, size] to the state, whose rows are selected by "beam_idx"."""
        shape = new.get_output_partial_shape(0)
        heads, size = shape[1].get_length(), shape[3].get_length()
        batch = op.gather(op.shape_of(self.inputs["ids"], "i64"), [0], [0])
        empty = op.broadcast(np.float32(0), op.concat([batch, np.array([heads, 0, size])], 0))
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = ov.PartialShape([-1, heads, -1, size]), F32, name
        variable = Variable(info)
        past = op.gather(op.read_value(empty, variable), self.input("beam_idx", [-1]), 0)
        both = op.concat([past, new], 2)
        self.states.append(op.assign(both, variable))
        return both

    def rotated(self, x: Node) -> Node:
        """Rotate the pairs (2i, 2i + 1) of x [b, heads, n, d] by the angles of the inputs "cosines" and "sines"."""
        size = self.stack.key_dim
        cos, sin = (self.input(name, [-1, 1, -1, size // 2, 1], F32) for name in ("cosines", "sines"))
        even, odd = op.split(op.reshape(x, [0, 0, 0, size // 2, 2], True), -1, 2).outputs()
        left = op.subtract(op.multiply(even, cos), op.multiply(odd, sin))
        right = op.add(op.multiply(odd, cos), op.multiply(even, sin))
        return op.reshape(op.concat([left, right], -1), [0, 0, 0, size], True)

    def plain_attention(self, q: Node, k: Node, v: Node, mask: Node) -> Node:
        """Compute attention by its formula where the scores are needed: NEZHA's distances, RealFormer's residual."""
        stack, count = self.stack, 2 * self.stack.relative_clip + 1
        scores = op.matmul(q, k, False, True)
        index = table = None
        if stack.position == "relative":
            table = op.constant(sinusoidal(np.arange(count), stack.key_dim, xp))
            index = op.unsqueeze(self.input("distances", [-1, -1, -1]), [1])
            index = op.broadcast(index, op.shape_of(scores, "i64"), "bidirectional")
            scores = op.add(scores, op.gather_elements(op.matmul(q, table, False, True), index, -1))
        own = scores = op.multiply(scores, np.float32(stack.scale))
        if self.scores is not None:
            scores = op.add(scores, self.scores)
        self.scores = {"cumulative": scores, "previous": own}.get(stack.score_residual)
        shares = op.softmax(op.add(scores, mask), -1)
        out = op.matmul(shares, v, False, False)
        if index is None:
            return out
        shape = op.concat([op.gather(op.shape_of(out, "i64"), [0, 1, 2], 0), np.array([count])], 0)
        by_row = op.scatter_elements_update(op.broadcast(np.float32(0), shape), index, shares, -1, "sum")
        return op.add(out, op.matmul(by_row, table, False, False))

    def logits(self, x: Node) -> Node:
        config, weights = self.config, self.weights
        if config.logit_scale != 1.0:
            x = op.multiply(x, np.float32(config.logit_scale))
        if config.output == "mlm":
            x = _ACTIVATIONS[config.head_activation](weights.linear(x, "output.dense"))
            x = self.norm(x, "output.norm", eps=config.head_norm_eps, kind="layer")
        elif config.main.embedding_size != config.main.hidden_size:
            x = weights.linear(x, "output.project")
        x = weights.product(x, "token.weight" if config.tied else "output.weight")
        return op.add(x, weights.constant("output.bias")) if "output.bias" in weights else x
