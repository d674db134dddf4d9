"""The Llama family as an OpenVINO graph: weights in eight bits, adapters and the cache as inputs.

Tokens of many streams come flat, one after the other, some a prompt and some one token; the
graph's attention finds by their blocks what each may read.

Inputs: `x` [1, tokens, hidden]; `cos`, `sin` [tokens, 1, 1, head_dim]; `last` [rows], the token of
each row whose logits are wanted; `keys`, `values`, `past`, `begins`, `blocks`, `block_begins`,
`longest` as `PagedCache` gives them; A and B of the adapters in this step (`a_name`, `b_name`);
`own.1` to `own.3` [tokens, linears * adapters * rank], 1 where the adapter is the token's own.
Output: logits [1, rows, vocabulary].

What each layer has of its own comes as one input for all layers: an input costs 3 us a step.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset13 as op
from openvino.op import _PagedAttentionExtension as PagedAttention
from transformers import PreTrainedModel

from chatbot.inprocess.fused import bias, head_weights, joints

WIDEST = 127
"""The largest weight of each output becomes this."""

FLOAT, INT = ov.Type.f32, ov.Type.i32
LAST = np.int64(-1)

Each = TypeVar("Each")


class Graph:
    """Builds `model`; the graph has its own copy of all weights but the embedding's."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.nbytes = 0
        """Of the weights in eight bits."""
        self._model = model
        self._count = len(model.model.layers)
        self._inputs: dict[str, Any] = {}
        self._stacks: dict[str, list[Any]] = {}
        self._cos, self._sin = (self._input(name, FLOAT, [-1, 1, 1, -1]) for name in ("cos", "sin"))
        config = model.config
        x = self._input("x", FLOAT, [1, -1, int(config.hidden_size)])
        for index in range(self._count):
            x = self._layer(x, index)
        x = op.gather(x, self._input("last", INT, [-1]), np.int64(1))
        head = model.lm_head
        logits = self._product(_norm(x, model.model.norm), [head])
        self.whole = ov.Model([logits], list(self._inputs.values()), config.model_type)

    def _layer(self, x: Any, index: int) -> Any:
        layer = self._model.model.layers[index]
        (qkv,) = self._adapted(_norm(x, layer.input_layernorm), index, "qkv")
        x = op.add(x, *self._adapted(self._attend(qkv, index, layer.self_attn), index, "out"))
        gate, up = self._adapted(_norm(x, layer.post_attention_layernorm), index, "gate_up")
        return op.add(x, *self._adapted(op.multiply(op.swish(gate), up), index, "down"))

    def _adapted(self, x: Any, index: int, joint: str) -> list[Any]:
        """x through a layer's linears of this joint, and what the adapters add to it: group by
        group."""
        names = joints(index)[joint]
        modules = [self._model.get_submodule(name) for name in names]
        down = self._stack(a_name(joint), [modules[0].in_features, -1])[index]
        own = self._input(f"own.{len(names)}", FLOAT, [-1, -1])
        low = op.multiply(op.matmul(x, down, False, False), own)
        sizes = [sum(module.out_features for module in group) for group in grouped(modules)]
        wholes = _split(self._product(x, modules), sizes)
        lows = [low] if len(sizes) == 1 else op.split(low, LAST, len(sizes)).outputs()
        found = []
        for number, (size, whole, part) in enumerate(zip(sizes, wholes, lows, strict=True)):
            up = self._stack(b_name(joint, number), [-1, size])[index]
            found.append(op.add(whole, op.matmul(part, up, False, False)))
        return found

    def _product(self, x: Any, modules: list[Any]) -> Any:
        weight = torch.cat([module.weight.detach() for module in modules])
        small, scale = eight_bits(weight)
        self.nbytes += small.nbytes
        wide = op.multiply(op.convert(op.constant(small), "f32"), op.constant(scale))
        y = op.matmul(x, wide, False, True)
        offset = bias(modules, weight)
        return y if offset is None else op.add(y, op.constant(offset.float().numpy()))

    def _attend(self, qkv: Any, index: int, attention: Any) -> Any:
        size = int(attention.head_dim)
        heads, kv = (each.out_features // size for each in (attention.q_proj, attention.k_proj))
        qk, v = _split(qkv, [(heads + kv) * size, kv * size])
        q, k = _split(self._turn(qk, heads, kv, attention), [heads * size, kv * size])
        v = op.reshape(v, np.array([-1, kv * size]), False)
        return self._read(q, k, v, index, kv, attention)

    def _turn(self, x: Any, heads: int, kv: int, attention: Any) -> Any:
        """Rotary positions for queries and keys at once, after a norm of each head where the model
        has them."""
        size = int(attention.head_dim)
        x = op.reshape(x, np.array([-1, heads + kv, 1, size]), False)
        if hasattr(attention, "q_norm"):
            weights = head_weights(attention.q_norm, attention.k_norm, heads, kv).float()
            x = _rms(x, attention.q_norm.variance_epsilon, torch.ones(size))
            x = op.multiply(x, op.constant(weights[:, None].numpy()))
        # In four dimensions and split along the last by its number, OpenVINO knows the pattern and
        # makes it one operator.
        first, second = op.variadic_split(x, np.int64(3), np.array([size // 2] * 2)).outputs()
        rolled = op.concat([op.multiply(second, np.float32(-1)), first], -1)
        turned = op.add(op.multiply(x, self._cos), op.multiply(rolled, self._sin))
        return op.reshape(turned, np.array([-1, (heads + kv) * size]), False)

    def _read(self, q: Any, k: Any, v: Any, index: int, kv: int, attention: Any) -> Any:
        caches = [self._input(name, ov.Type.dynamic, [-1] * 4) for name in ("keys", "values")]
        past, begins, blocks, block_begins = (
            self._input(name, INT, [-1]) for name in ("past", "begins", "blocks", "block_begins")
        )
        longest = self._input("longest", INT, [])
        # Of the operator's 28 inputs those after `longest` serve what is not asked for here:
        # eviction and rotation of blocks, sparse attention, sinks, masks of images and drafts.
        none, nones, zero = _constant([]), _constant([], np.int32), _constant(0, np.int32)
        inputs = [q, k, v, *caches, past, begins, op.add(blocks, np.int32(index)), block_begins]
        inputs += [_constant(attention.scaling), zero, none, longest, nones, nones, nones, none]
        inputs += [none, zero, zero, none, zero, nones, nones, nones, nones]
        inputs += [_constant([], np.uint8), nones]
        node = PagedAttention([_port(each) for each in inputs])
        size = int(attention.head_dim)
        shape = {"k_head_size": size, "v_head_size": size, "num_k_heads": kv, "num_v_heads": kv}
        for name, value in shape.items():
            node.get_rt_info()[name] = value
        return node.output(0)

    def _input(self, name: str, kind: Any, shape: Any) -> Any:
        """The input of this name, the same for all layers that ask for it."""
        if name not in self._inputs:
            made = op.parameter(shape, kind)
            made.set_friendly_name(name)
            made.output(0).set_names({name})
            self._inputs[name] = made
        return self._inputs[name]

    def _stack(self, name: str, shape: list[int]) -> list[Any]:
        """The parts [1, *shape] of an input [layers, *shape]. They are split along the outermost
        axis, for which nothing is copied."""
        if name not in self._stacks:
            whole = self._input(name, FLOAT, [self._count, *shape])
            self._stacks[name] = op.split(whole, np.int64(0), self._count).outputs()
        return self._stacks[name]


def a_name(joint: str) -> str:
    """The input for A of a joint's linears, [layers, inputs, linears * adapters * rank]."""
    return f"{joint}.a"


def b_name(joint: str, group: int) -> str:
    """The input for B of one of its groups, [layers, linears * adapters * rank, outputs]: block by
    block, and zero elsewhere."""
    return f"{joint}.b.{group}"


def grouped(names: Sequence[Each]) -> list[Sequence[Each]]:
    """Linears of one input whose B are one matrix. Queries, keys and values are so narrow that
    multiplying by its zeros costs less than operators of their own."""
    return [names] if len(names) == 3 else [[name] for name in names]


def eight_bits(weight: torch.Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """weight [out, in] -> the same in steps [out, in], and the size of a step [out, 1]."""
    full = weight.float()
    scale = (full.abs().amax(1, keepdim=True) / WIDEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (full / scale).round().to(torch.int8).numpy(), scale.numpy()


def _split(x: Any, sizes: Sequence[int]) -> list[Any]:
    """The outputs side by side in x one by one."""
    if len(sizes) == 1:
        return [x]
    return list(op.variadic_split(x, LAST, np.array(sizes)).outputs())


def _norm(x: Any, module: Any) -> Any:
    return _rms(x, module.variance_epsilon, module.weight.detach().float())


def _rms(x: Any, epsilon: float, weight: torch.Tensor) -> Any:
    """Root mean square norm, in the form that OpenVINO knows as one operator."""
    square = op.reduce_mean(op.power(x, np.float32(2)), np.array([-1]), True)
    root = op.sqrt(op.add(square, np.float32(epsilon)))
    return op.multiply(op.multiply(x, op.divide(np.float32(1), root)), op.constant(weight.numpy()))


def _constant(values: Any, kind: Any = np.float32) -> Any:
    return op.constant(np.asarray(values, kind))


def _port(node: Any) -> Any:
    return node if isinstance(node, ov.Output) else node.output(0)
