"""Packs and describes a model's weights and its adapters' matrices for the kernels."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from chatbot.engine.local.kernels.panels import (
    PACKINGS,
    HugePageArena,
    PanelLinear,
    data_pointer,
)
from chatbot.engine.local.kernels.structs import (
    MAX_SCALE_GROUP,
    NUM_LINEARS,
    LayerStruct,
    LoraStruct,
    MatrixStruct,
    ModelStruct,
)
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.fused_linear import (
    SharedWeights,
    concatenate_weights,
    fused_linear_names,
)
from chatbot.engine.local.runners.transformers_runner import TransformersRunner


class PackedWeights:
    """Holds a model's weights as the kernels read them.

    In the model's own type the linears give their weights up until `restore`; in eight bits the
    model keeps them. In eight bits a group of inputs has a scale for each output, and one for each
    token.
    """

    def __init__(self, reference: TransformersRunner, int8: bool) -> None:
        self._linears = reference.lora_layers.linears
        self._scale_group = _scale_group(reference.model) if int8 else None
        self._arena = HugePageArena()
        self._norm_weights: list[torch.Tensor] = []
        """In float32."""
        self._shared_weights: list[SharedWeights] = []
        self._copies: list[PanelLinear] = []
        """Matrices whose weights the model holds as well."""
        model = reference.model
        self.linear_names = [fused_linear_names(index) for index in range(len(model.model.layers))]
        self.cache_dtype = torch.bfloat16 if int8 else reference.dtype
        """The type of keys and values and of adapters. bfloat16 is half as much to read as float32,
        and eight bits are coarser anyway."""
        self._embedding = model.model.embed_tokens.weight.detach()
        self.vocab_size = len(self._embedding)
        self.model = self._describe_model(model)

    @property
    def extra_bytes(self) -> int:
        """Return the memory of the copies beside the model's weights."""
        return sum(linear.nbytes for linear in self._copies)

    def restore(self) -> None:
        """Give the model's linears their weights again."""
        for shared in self._shared_weights:
            shared.restore_weights()

    def _describe_model(self, model: Any) -> ModelStruct:
        core = model.model
        attention = core.layers[0].self_attn
        layers = [
            self._describe_layer(layer, names)
            for layer, names in zip(core.layers, self.linear_names, strict=True)
        ]
        num_heads, num_kv_heads, head_size = head_counts(attention)
        return ModelStruct(
            num_layers=len(layers),
            hidden_size=self._embedding.shape[1],
            intermediate_size=core.layers[0].mlp.gate_proj.out_features,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            packing=PACKINGS[self.cache_dtype],
            embedding_packing=PACKINGS[self._embedding.dtype],
            eps=core.norm.variance_epsilon,
            attention_scale=attention.scaling,
            layers=(LayerStruct * len(layers))(*layers),
            final_norm=self._norm_pointer(core.norm),
            embedding=self._embedding.data_ptr(),
            lm_head=self._copy(model.lm_head.weight.detach(), model.lm_head.bias).matrix,
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
        """Pack the linears of one input as one matrix."""
        linears = [self._linears[name] for name in names]
        if self._scale_group is not None:  # rounded: the model's weights could not be restored
            return self._copy(*concatenate_weights(linears))
        self._shared_weights.append(SharedWeights(linears, self._pack))
        product: PanelLinear = self._shared_weights[-1].product
        return product

    def _copy(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PanelLinear:
        """Pack a weight that the model keeps as well."""
        self._copies.append(self._pack(weight, bias))
        return self._copies[-1]

    def _pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PanelLinear:
        return PanelLinear(weight, bias, self._arena, self._scale_group)

    def _norm_pointer(self, norm: Any) -> int | None:
        """Return the address of a norm's weight in float32; None for no norm."""
        if norm is None:
            return None
        self._norm_weights.append(norm.weight.detach().float().contiguous())
        return data_pointer(self._norm_weights[-1])


class PackedAdapter:
    """Holds an adapter's matrices as the kernels read them."""

    def __init__(self, weights: PackedWeights, lora_layers: LoraLayers, name: str) -> None:
        self._linears: list[PanelLinear] = []
        self._dtype = weights.cache_dtype
        self.rank = 0
        loras = [
            self._pack_lora([lora_layers.linears[linear].matrices[name] for linear in fused])
            for layer in weights.linear_names
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


def head_counts(attention: Any) -> tuple[int, int, int]:
    """Return the number of query heads, that of key/value heads, and their size."""
    size = int(attention.head_dim)
    linears = (attention.q_proj, attention.k_proj)
    heads, kv_heads = (linear.out_features // size for linear in linears)
    return heads, kv_heads, size


def _scale_group(model: Any) -> int:
    """Return how many inputs share a scale: the most that divide the inputs of every product, for
    large groups are faster."""
    config = model.config
    inputs = math.gcd(config.hidden_size, config.intermediate_size)
    inputs = math.gcd(inputs, model.model.layers[0].self_attn.o_proj.in_features)
    return max(size for size in range(4, MAX_SCALE_GROUP + 1, 4) if inputs % size == 0)
