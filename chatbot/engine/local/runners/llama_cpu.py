"""The runners of the Llama family over our own kernels: a forward of all layers is one call.

Weights, keys and values stay in the model's type, or weights are rounded to eight bits, and keys,
values and adapters to bfloat16; activations between two products are float32.
"""

import math
from collections.abc import Sequence
from ctypes import POINTER, Array, byref, c_int64, c_void_p, cast
from dataclasses import replace
from itertools import accumulate
from typing import Any, Self

import torch

from chatbot.engine.local.kernels import library
from chatbot.engine.local.kernels.panels import (
    PACKINGS,
    HugePageArena,
    PanelLinear,
    data_pointer,
)
from chatbot.engine.local.kernels.structs import (
    NUM_LINEARS,
    AdapterTokensStruct,
    ChunkStruct,
    ForwardArgsStruct,
    LayerStruct,
    LoraStruct,
    MatrixStruct,
    ModelStruct,
    TokenBatchStruct,
)
from chatbot.engine.local.runners.fused_linear import (
    LLAMA_FAMILY,
    SharedWeights,
    concatenate_weights,
    fused_linear_names,
)
from chatbot.engine.local.runners.rotary import RotaryTable
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import TransformersRunner

MAX_SCALE_GROUP = 192
"""Inputs, at most, that share a scale in eight bits: larger groups are faster, and coarser."""
MAX_HEAD_SIZE, MAX_QUERIES_PER_KV_HEAD = 256, 96
"""What the kernels' buffers have room for (`attention.h`)."""


def unsupported_reason(reference: TransformersRunner) -> str | None:
    """Return why the kernels cannot compute this model here, for the log; None if they can."""
    config = reference.model.config
    if config.model_type not in LLAMA_FAMILY:
        family = ", ".join(sorted(LLAMA_FAMILY))
        return f"its kernels are not for {config.model_type}, but for {family}."
    if config.hidden_act != "silu":
        return f"its kernels compute silu, and this model wants {config.hidden_act}."
    if not reference.cpu:
        return f"its kernels are for CPUs, and the model is on {reference.like.device}."
    if reference.dtype not in PACKINGS:
        return (
            f"its kernels compute in float32 and bfloat16, and the model is in {reference.dtype}."
        )
    heads, kv_heads, size = _head_counts(reference.model.model.layers[0].self_attn)
    if size > MAX_HEAD_SIZE or heads > MAX_QUERIES_PER_KV_HEAD * kv_heads:
        return (
            f"its kernels are not for {heads} heads of {size} over {kv_heads} of keys and values."
        )
    if odd := [n for n in (size, config.hidden_size, config.intermediate_size) if n % 4]:
        return f"its kernels take sizes that four divides, and {odd[0]} is none."
    if library.kernel_library() is None:
        return (
            "its kernels are not there: they take a CPU with AVX-512 and VNNI, and are compiled "
            "by pip where there is a C compiler."
        )
    return None


class LlamaCpuRunner(TransformersRunner):
    """Computes forwards of the Llama family on a CPU by our kernels; it holds the model's weights
    until `restore_weights`."""

    name = "llama_cpu"
    _scratch: torch.Tensor
    _logits: torch.Tensor
    _cache_capacity: tuple[int, int] | None
    """The cache's when its addresses were read."""

    def __init__(self, reference: TransformersRunner) -> None:
        super().__init__(reference.model, reference.lora_layers, reference.cache)
        self._reference = reference
        self._kernels: Any = library.kernel_library()
        count = len(self.model.model.layers)
        self._linear_names = [fused_linear_names(index) for index in range(count)]
        self._rotary_table = RotaryTable(self.model, torch.empty(0))
        self._adapters: dict[str, PackedAdapter] = {}
        self._arena = HugePageArena()
        self._norm_weights: list[torch.Tensor] = []
        """In float32."""
        self._shared_weights: list[SharedWeights] = []
        self._copies: list[PanelLinear] = []
        """Matrices whose weights the model holds as well."""
        self._model = self._describe_model()
        self._forget_buffers()

    @property
    def extra_bytes(self) -> int:
        """Return the memory that it takes beside the model's weights."""
        return sum(linear.nbytes for linear in self._copies)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Return the type of keys and values and of adapters."""
        return self.dtype

    @property
    def adapter_bytes(self) -> int:
        """Return the memory of all adapters, in every layout they are held in."""
        packed = sum(adapter.nbytes for adapter in [*self._adapters.values()])
        return super().adapter_bytes + packed

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no sequence uses; between two forwards only."""
        super().drop_adapter(adapter)
        self._adapters.pop(adapter, None)

    def with_own_cache(self, slots: int, length: int) -> Self:
        """Return the same runner over an empty cache of its own, for a few forwards."""
        other = super().with_own_cache(slots, length)
        other._forget_buffers()
        return other

    def reference(self) -> TransformersRunner:
        """Return the runner through transformers; its linears take their parts of the kernels'
        products while this runner holds the weights."""
        return self._reference

    def restore_weights(self) -> None:
        """Give the model's linears their weights again; this runner cannot be used any more."""
        for shared in self._shared_weights:
            shared.restore_weights()

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute the chunks without padding; return the logits [sum of num_logits, vocab] after
        the last tokens of each.

        Raises ValueError for ids outside of the vocabulary, or more rows or positions than the
        cache may have: the kernels check nothing.
        """
        ids = torch.tensor([token for chunk in chunks for token in chunk.ids])
        self._check_ids(ids)
        positions = torch.tensor([p for chunk in chunks for p in range(chunk.start, chunk.end)])
        logit_rows = torch.tensor(_logit_rows(chunks))
        num_logits, num_positions = len(logit_rows), max(chunk.end for chunk in chunks)
        cos, sin = self._rotary_table(positions, num_positions)
        key_cache, value_cache = self._cache_pointers(chunks[-1].row + 1, num_positions)
        tokens = logit_tokens = self._token_batch(chunks)
        if num_logits < len(ids):
            logit_tokens = self._token_batch([_with_logits(chunk) for chunk in chunks])
        if num_logits > len(self._logits):
            self._logits = torch.empty(num_logits, self._model.lm_head.outputs)
        args = ForwardArgsStruct(
            num_threads=torch.get_num_threads(),
            kv_capacity=self.cache.capacity[1],
            token_ids=ids.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            key_cache=cast(key_cache, c_void_p),
            value_cache=cast(value_cache, c_void_p),
            logits=self._logits.data_ptr(),
            logit_rows=logit_rows.data_ptr(),
            tokens=tokens,
            logit_tokens=logit_tokens,
        )
        self._call_kernels(args)
        return self._logits[:num_logits]

    def _check_ids(self, ids: torch.Tensor) -> None:
        extremes = (int(ids.min()), int(ids.max()))
        if outside := [token for token in extremes if not 0 <= token < self._vocab_size]:
            raise ValueError(f"The model has {self._vocab_size} tokens, none of them {outside[0]}.")

    def _call_kernels(self, args: ForwardArgsStruct) -> None:
        """Give the forward its scratch memory and run it."""
        needed = self._kernels.talkback_scratch_floats(byref(self._model), byref(args))
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed)
        args.scratch = self._scratch.data_ptr()
        self._kernels.talkback_forward(byref(self._model), byref(args))

    def _forget_buffers(self) -> None:
        """Begin with no memory and no addresses of a cache."""
        self._scratch, self._logits = torch.empty(0), torch.empty(0, 0)
        self._cache_capacity = None

    def _cache_pointers(self, rows: int, positions: int) -> tuple[Array[Any], Array[Any]]:
        """Return the addresses of each layer's keys and of its values, with memory for so many rows
        and positions."""
        model = self._model
        like = torch.empty(model.num_kv_heads, model.head_size, dtype=self.cache_dtype)
        self.cache.allocate(len(self._linear_names), like, rows, positions)
        if self._cache_capacity != self.cache.capacity:
            self._cache_capacity = self.cache.capacity
            self._addresses = [
                (c_void_p * len(layers))(*layers) for layers in self.cache.data_pointers
            ]
        keys, values = self._addresses
        return keys, values

    def _token_batch(self, chunks: Sequence[Chunk]) -> TokenBatchStruct:
        """Describe the chunks' tokens side by side, and which adapter each has."""
        first_tokens = [0, *accumulate(len(chunk.ids) for chunk in chunks)]
        indices: dict[str, list[int]] = {}
        for chunk, first in zip(chunks, first_tokens, strict=False):
            if chunk.adapter is not None:
                tokens = range(first, first + len(chunk.ids))
                indices.setdefault(chunk.adapter, []).extend(tokens)
        adapters = [self._adapter_tokens(name, tokens) for name, tokens in indices.items()]
        structs = [
            ChunkStruct(first, len(chunk.ids), chunk.row, chunk.start)
            for chunk, first in zip(chunks, first_tokens, strict=False)
        ]
        return TokenBatchStruct(
            first_tokens[-1],
            len(structs),
            len(adapters),
            (ChunkStruct * len(structs))(*structs),
            (AdapterTokensStruct * len(adapters))(*adapters),
        )

    def _adapter_tokens(self, name: str, tokens: Sequence[int]) -> AdapterTokensStruct:
        adapter = self._adapters.get(name) or self._pack_adapter(name)
        indices = cast((c_int64 * len(tokens))(*tokens), POINTER(c_int64))
        return AdapterTokensStruct(indices, len(tokens), adapter.rank, adapter.loras)

    def _pack_adapter(self, name: str) -> "PackedAdapter":
        self._adapters[name] = PackedAdapter(self, name)
        return self._adapters[name]

    def _describe_model(self) -> ModelStruct:
        core, lm_head = self.model.model, self.model.lm_head
        layers = [
            self._describe_layer(layer, names)
            for layer, names in zip(core.layers, self._linear_names, strict=True)
        ]
        num_heads, num_kv_heads, head_size = _head_counts(core.layers[0].self_attn)
        self._embedding = core.embed_tokens.weight.detach()
        self._vocab_size = len(self._embedding)
        return ModelStruct(
            num_layers=len(layers),
            hidden_size=self._embedding.shape[1],
            intermediate_size=core.layers[0].mlp.gate_proj.out_features,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            packing=PACKINGS[self.cache_dtype],
            embedding_packing=PACKINGS[self.dtype],
            eps=core.norm.variance_epsilon,
            attention_scale=core.layers[0].self_attn.scaling,
            layers=(LayerStruct * len(layers))(*layers),
            final_norm=self._norm_pointer(core.norm),
            embedding=self._embedding.data_ptr(),
            lm_head=self._copy(lm_head.weight.detach(), lm_head.bias).matrix,
        )

    def _describe_layer(self, layer: Any, names: dict[str, list[str]]) -> LayerStruct:
        matrices = [self._fuse(fused).matrix for fused in names.values()]
        attention = layer.self_attn
        return LayerStruct(
            linears=(MatrixStruct * NUM_LINEARS)(*matrices),
            input_norm=self._norm_pointer(layer.input_layernorm),
            post_attention_norm=self._norm_pointer(layer.post_attention_layernorm),
            q_norm=self._norm_pointer(getattr(attention, "q_norm", None)),
            k_norm=self._norm_pointer(getattr(attention, "k_norm", None)),
        )

    def _fuse(self, names: Sequence[str]) -> PanelLinear:
        """Pack the linears of one input as one matrix, which the model's linears give their weights
        to."""
        linears = [self.lora_layers.linears[name] for name in names]
        self._shared_weights.append(SharedWeights(linears, self._pack))
        product: PanelLinear = self._shared_weights[-1].product
        return product

    def _copy(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PanelLinear:
        """Pack a weight that the model keeps as well."""
        self._copies.append(self._pack(weight, bias))
        return self._copies[-1]

    def _pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PanelLinear:
        return PanelLinear(weight, bias, self._arena)

    def _norm_pointer(self, norm: Any) -> int | None:
        """Return the address of a norm's weight in float32; None for no norm."""
        if norm is None:
            return None
        self._norm_weights.append(norm.weight.detach().float().contiguous())
        return data_pointer(self._norm_weights[-1])


class LlamaInt8Runner(LlamaCpuRunner):
    """Computes forwards with weights in eight bits; the model keeps its own.

    Weights have a scale for each output, activations one for each token and group of inputs.
    """

    name = "int8"

    @property
    def cache_dtype(self) -> torch.dtype:
        """Return bfloat16: half as much to read as float32, and eight bits are coarser anyway."""
        return torch.bfloat16

    def _fuse(self, names: Sequence[str]) -> PanelLinear:
        linears = [self.lora_layers.linears[name] for name in names]
        return self._copy(*concatenate_weights(linears))

    def _pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PanelLinear:
        return PanelLinear(weight, bias, self._arena, _scale_group(self.model))


class PackedAdapter:
    """Holds an adapter's matrices as the kernels read them."""

    def __init__(self, runner: LlamaCpuRunner, name: str) -> None:
        self._linears: list[PanelLinear] = []
        self._dtype = runner.cache_dtype
        self.rank = 0
        linears = runner.lora_layers.linears
        loras = [
            self._pack_lora([linears[linear].matrices[name] for linear in fused])
            for layer in runner._linear_names
            for fused in layer.values()
        ]
        self.loras = (LoraStruct * len(loras))(*loras)
        self.nbytes = sum(linear.nbytes for linear in self._linears)

    def _pack_lora(self, matrices: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> LoraStruct:
        """Pack the A [rank, in] and B [out, rank] of the linears of one input."""
        self.rank = len(matrices[0][0])
        stacked_a = self._pack(torch.cat([a for a, _ in matrices]))
        b = [self._pack(b) for _, b in matrices]
        return LoraStruct(stacked_a, (MatrixStruct * 3)(*b), len(b))

    def _pack(self, weight: torch.Tensor) -> MatrixStruct:
        self._linears.append(PanelLinear(weight.to(self._dtype)))
        return self._linears[-1].matrix


def _logit_rows(chunks: Sequence[Chunk]) -> list[int]:
    """Return the indices, among all tokens, of those whose logits are wanted."""
    ends = zip(chunks, accumulate(len(chunk.ids) for chunk in chunks), strict=True)
    return [index for chunk, end in ends for index in range(end - chunk.num_logits, end)]


def _with_logits(chunk: Chunk) -> Chunk:
    """Return the end of a chunk: its tokens whose logits are wanted."""
    start = chunk.end - chunk.num_logits
    return replace(chunk, ids=chunk.ids[-chunk.num_logits :], start=start)


def _head_counts(attention: Any) -> tuple[int, int, int]:
    """Return the number of query heads, that of key/value heads, and their size."""
    size = int(attention.head_dim)
    linears = (attention.q_proj, attention.k_proj)
    heads, kv_heads = (linear.out_features // size for linear in linears)
    return heads, kv_heads, size


def _scale_group(model: Any) -> int:
    """Return how many inputs share a scale: the most that divide the inputs of every product."""
    config = model.config
    inputs = math.gcd(config.hidden_size, config.intermediate_size)
    inputs = math.gcd(inputs, model.model.layers[0].self_attn.o_proj.in_features)
    return max(size for size in range(4, MAX_SCALE_GROUP + 1, 4) if inputs % size == 0)
