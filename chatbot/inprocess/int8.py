"""The path of the Llama family in eight bits, on a CPU: OpenVINO's kernels under our batch.

Weights are int8 with a scale an output, activations int8 with a scale a token and group of inputs,
keys and values float16, adapters float32. The result is near that of the exact weights, not the
same: `probe` decides whether it is near enough. Imported only where OpenVINO is there.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray

from chatbot.inprocess.angles import Angles
from chatbot.inprocess.forward import Forward
from chatbot.inprocess.fused import joints
from chatbot.inprocess.graph import Graph
from chatbot.inprocess.paged import PagedCache
from chatbot.inprocess.path import Part
from chatbot.inprocess.wardrobe import Wardrobe
from chatbot.lora import RANK

GROUP = 192
"""Most inputs that share a scale: larger ones are faster, and coarser."""


class Int8:
    """`Forward`'s place for `FAMILY` on a CPU; the model keeps its weights."""

    name = "int8"
    cpu = True

    def __init__(self, plain: Forward, threads: int, spare_bytes: int = 0) -> None:
        self.parameters = plain.parameters
        self._plain = plain
        self._room = (plain.cache.slots, plain.cache.max_length, spare_bytes)
        self._layers = [joints(index) for index in range(len(plain.model.model.layers))]
        self._angles = Angles(plain.model, torch.empty(0))
        self._threads = 0
        self._owners: tuple[tuple[str, ...], list[str | None], list[int]] | None = None
        self.take(threads)

    def take(self, threads: int) -> None:
        """Compile for so many threads; torch, which only samples here, is left one."""
        torch.set_num_threads(1)
        if threads == self._threads:
            return
        graph = Graph(self._plain.model)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f16",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_group(self._plain.model)),
            "ENABLE_CPU_PINNING": False,  # workers would all be pinned to the same cores
        }
        self._compiled = ov.Core().compile_model(graph.whole, "CPU", settings)
        self._threads = threads
        self.extra_bytes = graph.nbytes
        self._start(*self._room)

    @property
    def adapter_bytes(self) -> int:
        """Memory of all adapters, what the graph wears included."""
        return self._plain.adapter_bytes + self._wardrobe.nbytes

    def drop(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with; between two steps only."""
        self._plain.drop(adapter)
        self._wardrobe.drop(adapter)
        self._wear(self._wardrobe.worn)

    def apart(self, slots: int, length: int) -> Self:
        """The same path over an empty cache of its own."""
        twin = copy.copy(self)
        twin._start(slots, length)
        return twin

    def plain(self) -> Forward:
        """Transformers' own forward."""
        return self._plain

    def give_back(self) -> None:
        """Leave the model as it was; this path has taken nothing of it."""

    def read(self, parts: Sequence[Part]) -> torch.Tensor:
        """Read the parts in one step; the logits [told, vocabulary] after its last tokens each."""
        lengths = [len(part.ids) for part in parts]
        ids = torch.tensor([one for part in parts for one in part.ids])
        places = torch.tensor([place for part in parts for place in range(part.start, part.end)])
        placed = self.cache.place(parts)
        cos, sin = self._angles(places, placed["longest"])
        embedded = torch.embedding(self._plain.model.model.embed_tokens.weight, ids).float()
        self._feed(x=embedded[None], cos=cos[:, None, None], sin=sin[:, None, None])
        self._give([part.adapter for part in parts], lengths)
        ends = zip(parts, placed["begins"][1:], strict=True)
        last = [token for part, end in ends for token in range(end - part.told, end)]
        self._feed(**{name: np.array(value, np.int32) for name, value in placed.items()})
        self._feed(last=np.array(last, np.int32))
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data[0])

    def _give(self, adapters: list[str | None], lengths: list[int]) -> None:
        """Tell whose adapter each token has, as wide as each kind of product wants it."""
        self._wear({name for name in adapters if name is not None})
        owners = (self._wardrobe.worn, adapters, lengths)
        if owners == self._owners:
            return
        own = torch.tensor([[row == name for name in owners[0]] for row in adapters]).float()
        own = own.view(len(adapters), -1).repeat_interleave(torch.tensor(lengths), dim=0)
        own = own.repeat_interleave(RANK, dim=1)
        widths = {len(names) for names in self._layers[0].values()}
        self._feed(**{f"own.{n}": own.repeat(1, n) for n in widths})
        self._owners = owners

    def _wear(self, adapters: Iterable[str]) -> None:
        """Have the graph wear these adapters."""
        for name, matrix in self._wardrobe.wear(adapters).items():
            if self._inputs.get(name) is not matrix:
                self._hand(name, matrix)

    def _start(self, slots: int, length: int, spare_bytes: int = 0) -> None:
        """Rows and adapters as they are at first: none."""
        self._request = self._compiled.create_infer_request()
        self._inputs: dict[str, NDArray[Any]] = {}
        self._wardrobe = Wardrobe(self._plain.rows, self._layers)
        self._owners = None
        self.cache = PagedCache(self._request, len(self._layers), slots, length, spare_bytes)

    def _feed(self, **inputs: Any) -> None:
        """Give the graph the step's inputs by name. It reads them where they are: they are held
        here, and written over by the next of the same shape, which takes a tenth of `_hand`."""
        for name, value in inputs.items():
            array = np.asarray(value, order="C")
            held = self._inputs.get(name)
            if held is not None and held.shape == array.shape:
                np.copyto(held, array)
            else:
                self._hand(name, array)

    def _hand(self, name: str, array: NDArray[Any]) -> None:
        """Have the graph read an input there from now on."""
        self._inputs[name] = array
        self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))


def _group(model: Any) -> int:
    """How many inputs share a scale: the most that divide the inputs of every product."""
    config = model.config
    inputs = math.gcd(config.hidden_size, config.intermediate_size)
    inputs = math.gcd(inputs, model.model.layers[0].self_attn.o_proj.in_features)
    return max(size for size in range(1, GROUP + 1) if inputs % size == 0)
