"""The path of the Llama family over our own kernels: a step of all layers in one call.

Weights and keys and values stay in the model's type, or weights are rounded to eight bits, and
keys, values and adapters to bfloat16; what is between two products is float32.
"""

import math
from collections.abc import Sequence
from ctypes import POINTER, Array, byref, c_int64, c_void_p, cast
from dataclasses import replace
from itertools import accumulate
from typing import Any, Self

import torch

from chatbot.engine.local import kernels
from chatbot.engine.local.kernels import Arena, Panels, pointer
from chatbot.engine.local.runners.fused_linear import FAMILY, Lent, joined, joints
from chatbot.engine.local.runners.rotary import Angles
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import TransformersRunner

GROUP = 192
"""Most inputs that share a scale in eight bits: larger ones are faster, and coarser."""
SIZE, SHARED = 256, 96
"""Most of a head, and most heads that share keys and values."""


def unfit(plain: TransformersRunner) -> str | None:
    """Why the kernels cannot compute this model here; None if they can."""
    config = plain.model.config
    if config.model_type not in FAMILY:
        return f"its kernels are not for {config.model_type}, but for {', '.join(sorted(FAMILY))}."
    if config.hidden_act != "silu":
        return f"its kernels compute silu, and this model wants {config.hidden_act}."
    if not plain.cpu:
        return f"its kernels are for CPUs, and the model is on {plain.like.device}."
    if plain.dtype not in kernels.KINDS:
        return f"its kernels compute in float32 and bfloat16, and the model is in {plain.dtype}."
    attention = plain.model.model.layers[0].self_attn
    heads, kv, size = _heads(attention)
    if size > SIZE or heads > SHARED * kv:
        return f"its kernels are not for {heads} heads of {size} over {kv} of keys and values."
    if odd := [n for n in (size, config.hidden_size, config.intermediate_size) if n % 4]:
        return f"its kernels take sizes that four divides, and {odd[0]} is none."
    if kernels.library() is None:
        return (
            "its kernels are not there: they take a CPU with AVX-512 and VNNI, and are compiled "
            "by pip where there is a C compiler."
        )
    return None


class LlamaCpuRunner(TransformersRunner):
    """`Forward`'s place for `FAMILY` on a CPU."""

    name = "native"
    _scratch: torch.Tensor
    _logits: torch.Tensor
    _room: tuple[int, int] | None
    """The cache's when its addresses were read."""

    def __init__(self, plain: TransformersRunner) -> None:
        super().__init__(plain.model, plain.rows, plain.cache)
        self._plain = plain
        self._kernels: Any = kernels.library()
        self._layers = [joints(index) for index in range(len(self.model.model.layers))]
        self._angles = Angles(self.model, torch.empty(0))
        self._adapters: dict[str, Adapter] = {}
        self._arena = Arena()
        self._norms: list[torch.Tensor] = []
        """Their weights, in float32."""
        self._lent: list[Lent] = []
        self._more: list[Panels] = []
        """Matrices whose weights the model holds as well."""
        self._model = self._read_model()
        self._begin()

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's weights."""
        return sum(panels.nbytes for panels in self._more)

    @property
    def kept(self) -> torch.dtype:
        """The type of keys and values and of adapters."""
        return self.dtype

    @property
    def adapter_bytes(self) -> int:
        """Memory of all adapters, in every layout they are held in."""
        return super().adapter_bytes + sum(each.nbytes for each in [*self._adapters.values()])

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with; between two steps only."""
        super().drop_adapter(adapter)
        self._adapters.pop(adapter, None)

    def with_own_cache(self, slots: int, length: int) -> Self:
        """The same path over an empty cache of its own, for a few steps."""
        twin = super().with_own_cache(slots, length)
        twin._begin()
        return twin

    def reference(self) -> TransformersRunner:
        """The plain path over the same cache; its linears ask the lent weights while they live."""
        return self._plain

    def restore_weights(self) -> None:
        """The model's linears have their weights again; this path is over."""
        for lent in self._lent:
            lent.restore_weights()

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """As `Forward` has it, in one step and without padding."""
        ids = torch.tensor([one for part in chunks for one in part.ids])
        if wrong := [int(each) for each in (ids.min(), ids.max()) if not 0 <= each < self._tokens]:
            raise ValueError(f"The model has {self._tokens} tokens, none of them {wrong[0]}.")
        places = torch.tensor([place for part in chunks for place in range(part.start, part.end)])
        ends = zip(chunks, accumulate(len(part.ids) for part in chunks), strict=True)
        last = torch.tensor([at for part, end in ends for at in range(end - part.num_logits, end)])
        reach = max(part.end for part in chunks)
        cos, sin = self._angles(places, reach)
        keys, values = self._stores(chunks[-1].row + 1, reach)
        every = self._side_by_side(chunks)
        told = every if len(last) == len(ids) else self._side_by_side([_told(p) for p in chunks])
        if len(last) > len(self._logits):
            self._logits = torch.empty(len(last), self._model.head.outputs)
        step = kernels.Step(
            threads=torch.get_num_threads(),
            positions=self.cache.capacity[1],
            ids=ids.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            keys=cast(keys, c_void_p),
            values=cast(values, c_void_p),
            logits=self._logits.data_ptr(),
            last=last.data_ptr(),
            all=every,
            told=told,
        )
        needed = self._kernels.talkback_scratch(byref(self._model), byref(step))
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed)
        step.scratch = self._scratch.data_ptr()
        self._kernels.talkback_step(byref(self._model), byref(step))
        return self._logits[: len(last)]

    def _begin(self) -> None:
        """Nothing is read yet."""
        self._scratch, self._logits = torch.empty(0), torch.empty(0, 0)
        self._room = None

    def _stores(self, rows: int, positions: int) -> tuple[Array[Any], Array[Any]]:
        """Where keys and values lie, with memory for so many rows and positions."""
        like = torch.empty(self._model.kv, self._model.size, dtype=self.kept)
        self.cache.allocate(len(self._layers), like, rows, positions)
        if self._room != self.cache.capacity:
            self._room = self.cache.capacity
            self._addresses = [(c_void_p * len(each))(*each) for each in self.cache.data_pointers]
        keys, values = self._addresses
        return keys, values

    def _side_by_side(self, parts: Sequence[Chunk]) -> kernels.Tokens:
        """The parts' tokens, and whose they are."""
        begins = [0, *accumulate(len(part.ids) for part in parts)]
        own: dict[str, list[int]] = {}
        for part, begin in zip(parts, begins, strict=False):
            if part.adapter is not None:
                own.setdefault(part.adapter, []).extend(range(begin, begin + len(part.ids)))
        owners = [self._owner(*each) for each in own.items()]
        rows = [
            kernels.Part(begin, len(part.ids), part.row, part.start)
            for part, begin in zip(parts, begins, strict=False)
        ]
        return kernels.Tokens(
            begins[-1],
            len(rows),
            len(owners),
            (kernels.Part * len(rows))(*rows),
            (kernels.Owner * len(owners))(*owners),
        )

    def _owner(self, name: str, tokens: Sequence[int]) -> kernels.Owner:
        adapter = self._adapters.get(name) or self._put_on(name)
        which = (c_int64 * len(tokens))(*tokens)
        return kernels.Owner(cast(which, POINTER(c_int64)), len(which), adapter.rank, adapter.low)

    def _put_on(self, name: str) -> "Adapter":
        self._adapters[name] = Adapter(self, name)
        return self._adapters[name]

    def _read_model(self) -> kernels.Model:
        core = self.model.model
        layers = [self._read_layer(*each) for each in zip(core.layers, self._layers, strict=True)]
        heads, kv, size = _heads(core.layers[0].self_attn)
        head = self.model.lm_head
        self._table = core.embed_tokens.weight.detach()
        self._tokens = len(self._table)
        return kernels.Model(
            layers=len(layers),
            hidden=self._table.shape[1],
            inner=core.layers[0].mlp.gate_proj.out_features,
            heads=heads,
            kv=kv,
            size=size,
            kind=kernels.KINDS[self.kept],
            words=kernels.KINDS[self.dtype],
            eps=core.norm.variance_epsilon,
            scale=core.layers[0].self_attn.scaling,
            layer=(kernels.Layer * len(layers))(*layers),
            norm=self._floats(core.norm),
            embedding=self._table.data_ptr(),
            head=self._held(head.weight.detach(), head.bias).matrix,
        )

    def _read_layer(self, layer: Any, names: dict[str, list[str]]) -> kernels.Layer:
        matrices = [self._joint(each).matrix for each in names.values()]
        attention = layer.self_attn
        return kernels.Layer(
            joint=(kernels.Matrix * 4)(*matrices),
            before=self._floats(layer.input_layernorm),
            after=self._floats(layer.post_attention_layernorm),
            queries=self._floats(getattr(attention, "q_norm", None)),
            keys=self._floats(getattr(attention, "k_norm", None)),
        )

    def _joint(self, names: Sequence[str]) -> Panels:
        """The linears of one input as one matrix."""
        self._lent.append(Lent([self.rows.linears[name] for name in names], self._panels))
        made: Panels = self._lent[-1].product
        return made

    def _held(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Panels:
        """The matrix of a weight that the model keeps."""
        self._more.append(self._panels(weight, bias))
        return self._more[-1]

    def _panels(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Panels:
        return Panels(weight, bias, self._arena)

    def _floats(self, norm: Any) -> int | None:
        """Where the weight of a norm lies, in float32."""
        if norm is None:
            return None
        self._norms.append(norm.weight.detach().float().contiguous())
        return pointer(self._norms[-1])


class LlamaInt8Runner(LlamaCpuRunner):
    """The same with weights in eight bits; the model keeps its own.

    Weights have a scale an output, what is multiplied with them one a token and group of inputs.
    """

    name = "int8"

    @property
    def kept(self) -> torch.dtype:
        """Half as much to read as float32; what eight bits round is coarser."""
        return torch.bfloat16

    def _joint(self, names: Sequence[str]) -> Panels:
        return self._held(*joined([self.rows.linears[name] for name in names]))

    def _panels(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Panels:
        return Panels(weight, bias, self._arena, _group(self.model))


class Adapter:
    """An adapter's matrices as the kernels read them."""

    def __init__(self, path: LlamaCpuRunner, name: str) -> None:
        self._kept: list[Panels] = []
        self._type = path.kept
        self.rank = 0
        low = [
            self._low([path.rows.linears[linear].matrices[name] for linear in linears])
            for layer in path._layers
            for linears in layer.values()
        ]
        self.low = (kernels.Low * len(low))(*low)
        self.nbytes = sum(each.nbytes for each in self._kept)

    def _low(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> kernels.Low:
        self.rank = len(pairs[0][0])
        down = self._panels(torch.cat([a for a, _ in pairs]))
        up = [self._panels(b) for _, b in pairs]
        return kernels.Low(down, (kernels.Matrix * 3)(*up), len(up))

    def _panels(self, weight: torch.Tensor) -> kernels.Matrix:
        self._kept.append(Panels(weight.to(self._type)))
        return self._kept[-1].matrix


def _told(part: Chunk) -> Chunk:
    """Its tokens whose logits are wanted."""
    return replace(part, ids=part.ids[-part.num_logits :], start=part.end - part.num_logits)


def _heads(attention: Any) -> tuple[int, int, int]:
    """Heads, those of keys and values, and their size."""
    size = int(attention.head_dim)
    linears = (attention.q_proj, attention.k_proj)
    heads, kv = (linear.out_features // size for linear in linears)
    return heads, kv, size


def _group(model: Any) -> int:
    """How many inputs share a scale: the most that divide the inputs of every product."""
    config = model.config
    inputs = math.gcd(config.hidden_size, config.intermediate_size)
    inputs = math.gcd(inputs, model.model.layers[0].self_attn.o_proj.in_features)
    return max(size for size in range(4, GROUP + 1, 4) if inputs % size == 0)
