"""Runs models of the Llama family by our own kernels: a forward of all layers is one call.

Weights, keys and values stay in the model's type, or weights are rounded to eight bits, and keys,
values and adapters to bfloat16; activations between two products are float32.
"""

from collections.abc import Sequence
from ctypes import POINTER, Array, byref, c_int64, c_void_p, cast
from dataclasses import replace
from itertools import accumulate
from typing import Any, Self

import torch

from chatbot.engine.local.kernels import library
from chatbot.engine.local.kernels.panels import PACKINGS
from chatbot.engine.local.kernels.structs import (
    AdapterTokensStruct,
    ChunkStruct,
    ForwardArgsStruct,
    TokenBatchStruct,
)
from chatbot.engine.local.runners.fused_linear import LLAMA_FAMILY
from chatbot.engine.local.runners.packed_weights import (
    PackedAdapter,
    PackedWeights,
    head_counts,
)
from chatbot.engine.local.runners.rotary import RotaryTable
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import TransformersRunner

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
    heads, kv_heads, size = head_counts(reference.model.model.layers[0].self_attn)
    if size > MAX_HEAD_SIZE or heads > MAX_QUERIES_PER_KV_HEAD * kv_heads:
        return (
            f"its kernels are not for {heads} heads of {size} over {kv_heads} of keys and values."
        )
    if odd := [n for n in (size, config.hidden_size, config.intermediate_size) if n % 4]:
        return f"its kernels take sizes that four divides, and {odd[0]} is none."
    if library.kernel_library() is None:
        if not library.cpu_has_instructions():
            return "its kernels take a CPU with AVX-512 and VNNI."
        return "its kernels are not there: pip compiles them where there is a C compiler."
    return None


class LlamaCpuRunner(TransformersRunner):
    """Computes forwards of the Llama family on a CPU by our kernels; it holds the model's weights
    until `restore_weights`."""

    name = "llama_cpu"
    _int8 = False
    _scratch: torch.Tensor
    _logits: torch.Tensor
    _cache_capacity: tuple[int, int] | None
    """The cache's when its addresses were read."""

    def __init__(self, reference: TransformersRunner) -> None:
        super().__init__(reference.model, reference.lora_layers, reference.cache)
        self._reference = reference
        self._kernels: Any = library.kernel_library()
        self._weights = PackedWeights(reference, self._int8)
        self._rotary_table = RotaryTable(self.model, torch.empty(0))
        self._adapters: dict[str, PackedAdapter] = {}
        self._forget_buffers()

    @property
    def extra_bytes(self) -> int:
        """Return the memory that it takes beside the model's weights."""
        return self._weights.extra_bytes

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
        self._weights.restore()

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
            self._logits = torch.empty(num_logits, self._weights.model.lm_head.outputs)
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
        if outside := [token for token in extremes if not 0 <= token < self._weights.vocab_size]:
            raise ValueError(
                f"The model has {self._weights.vocab_size} tokens, none of them {outside[0]}."
            )

    def _call_kernels(self, args: ForwardArgsStruct) -> None:
        """Give the forward its scratch memory and run it."""
        needed = self._kernels.talkback_scratch_floats(byref(self._weights.model), byref(args))
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed)
        args.scratch = self._scratch.data_ptr()
        library.count_layers(self._kernels, self.cache.progress.address)
        self._kernels.talkback_forward(byref(self._weights.model), byref(args))

    def _forget_buffers(self) -> None:
        """Begin with no memory and no addresses of a cache."""
        self._scratch, self._logits = torch.empty(0), torch.empty(0, 0)
        self._cache_capacity = None

    def _cache_pointers(self, rows: int, positions: int) -> tuple[Array[Any], Array[Any]]:
        """Return the addresses of each layer's keys and of its values, with memory for so many rows
        and positions."""
        model, dtype = self._weights.model, self._weights.cache_dtype
        like = torch.empty(model.num_kv_heads, model.head_size, dtype=dtype)
        self.cache.allocate(model.num_layers, like, rows, positions)
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

    def _pack_adapter(self, name: str) -> PackedAdapter:
        self._adapters[name] = PackedAdapter(self._weights, self.lora_layers, name)
        return self._adapters[name]


class LlamaInt8Runner(LlamaCpuRunner):
    """Computes forwards with weights in eight bits; the model keeps its own."""

    name = "int8"
    _int8 = True


def _logit_rows(chunks: Sequence[Chunk]) -> list[int]:
    """Return the indices, among all tokens, of those whose logits are wanted."""
    ends = zip(chunks, accumulate(len(chunk.ids) for chunk in chunks), strict=True)
    return [index for chunk, end in ends for index in range(end - chunk.num_logits, end)]


def _with_logits(chunk: Chunk) -> Chunk:
    """Return the end of a chunk: its tokens whose logits are wanted."""
    start = chunk.end - chunk.num_logits
    return replace(chunk, ids=chunk.ids[-chunk.num_logits :], start=start)
