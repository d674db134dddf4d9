"""The adapters that the graph in eight bits wears: their A and B side by side, of all layers."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chatbot.inprocess.graph import a_name, b_name, grouped
from chatbot.inprocess.rows import Pair, Rows
from chatbot.lora import RANK

PATIENCE = 8
"""Steps for which adapters that nobody speaks with are still worn where taking them off means new
matrices: in so many they cost what it takes to make them."""
KEPT = 4
"""Sets of adapters whose matrices are kept, and put on again in no time."""

Inputs = Mapping[str, NDArray[np.float32]]
"""A set's matrices by the graph's names for them."""


class Wardrobe:
    """Matrices in float32 for the sets of adapters that speak together.

    `layers` has for each layer the names of its linears, joint by joint.
    """

    def __init__(self, rows: Rows, layers: Sequence[dict[str, list[str]]]) -> None:
        self._linears = rows.linears
        self._layers = layers
        self._sets: OrderedDict[tuple[str, ...], Inputs] = OrderedDict()
        self._unused = 0
        self.worn: tuple[str, ...] = ()
        """In the order in which they lie side by side."""

    @property
    def nbytes(self) -> int:
        """Memory of all sets; any thread may ask."""
        return sum(each.nbytes for inputs in [*self._sets.values()] for each in inputs.values())

    def wear(self, wanted: Iterable[str]) -> Inputs:
        """The matrices to give the graph for a step in which these adapters speak. Those worn last
        may stay on: who speaks now and then would have new ones made at every turn."""
        names = tuple(sorted(wanted))
        self._unused = 0 if names == self.worn else self._unused + 1
        ready = not names or names in self._sets
        if not ready and self._unused <= PATIENCE:
            names = tuple(sorted({*names, *self.worn}))
        if names not in self._sets:
            self._sets[names] = self._made(names)
        self._sets.move_to_end(names)
        while len(self._sets) > KEPT:
            self._sets.popitem(last=False)
        if names != self.worn:
            self.worn, self._unused = names, 0
        return self._sets[names]

    def drop(self, adapter: str) -> None:
        """Forget all sets with an adapter; where it was worn, nothing is."""
        for names in [names for names in self._sets if adapter in names]:
            del self._sets[names]
        if adapter in self.worn:
            self.worn = ()

    def _made(self, names: tuple[str, ...]) -> Inputs:
        found: dict[str, Any] = {}
        for joint, linears in self._layers[0].items():
            pairs = [self._pairs(joint, place, names) for place in range(len(linears))]
            found[a_name(joint)] = torch.cat([a for a, _ in pairs], dim=2)
            for number, group in enumerate(grouped([b for _, b in pairs])):
                found[b_name(joint, number)] = _diagonal(group)
        return {name: np.asarray(value, order="C") for name, value in found.items()}

    def _pairs(self, joint: str, place: int, names: tuple[str, ...]) -> Pair:
        """A [layers, inputs, adapters * rank] and B [layers, adapters * rank, outputs] of a linear
        at this place of the joint."""
        linears = [self._linears[layer[joint][place]] for layer in self._layers]
        pairs = [linear.pairs[name] for linear in linears for name in names]
        module: Any = linears[0].module
        outputs, inputs = int(module.out_features), int(module.in_features)
        shape = (len(linears), len(names) * RANK)
        down = torch.cat([torch.empty(0, inputs), *(a.float() for a, _ in pairs)])
        up = torch.cat([torch.empty(0, outputs), *(b.float().t() for _, b in pairs)])
        return down.view(*shape, inputs).transpose(1, 2), up.view(*shape, outputs)


def _diagonal(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """[layers, rows, columns] each -> [layers, all rows, all columns], zero beside the blocks."""
    layers = zip(*blocks, strict=True)
    return torch.stack([torch.block_diag(*layer) for layer in layers])  # type: ignore[no-untyped-call]
