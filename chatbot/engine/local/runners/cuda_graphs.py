"""Steps that a GPU takes in one go.

A small step takes longer to launch, kernel by kernel, than to compute. A layout that comes again
and again is therefore recorded once, as a CUDA graph, and then launched whole.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from chatbot.engine.local.multi_lora import LoraBatch

log = logging.getLogger(__name__)

OFTEN = 3
"""Steps of one layout until it is recorded, which takes about as long as one of them."""
MOST = 128
"""Recordings that are kept."""
SEEN = 1024
"""Layouts whose steps are counted."""

Compute = Callable[[torch.Tensor], torch.Tensor]
"""Numbers of a step -> its logits, by launches that depend on nothing but the step's layout."""


class Span(NamedTuple):
    """Rows side by side in a step, with as many tokens each."""

    row: int
    """The first."""
    rows: int
    tokens: int
    """Of each row."""
    used: int
    """Positions that they look at."""


@dataclass(frozen=True)
class Layout:
    """All of a step but its numbers: the tokens, their places, and whose they are."""

    spans: tuple[Span, ...]
    told: tuple[int, ...]
    """The tokens whose logits are wanted."""
    adapters: tuple[str, ...]
    mixed: bool
    """Whether tokens differ in their adapter."""
    room: tuple[int, int]
    """The cache's: one with room for more lies elsewhere."""


class Recording:
    """The launches of one step. They read and write where they did when they were recorded."""

    def __init__(
        self, compute: Compute, numbers: torch.Tensor, plan: LoraBatch, held: object, pool: Any
    ) -> None:
        self._numbers = numbers.clone()
        self._owner = plan.token_mask.clone()
        self._held = held, compute
        self._graph = torch.cuda.CUDAGraph()
        plan.use_mask(self._owner)
        # Other threads may load an adapter meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = compute(self._numbers)

    @property
    def pool(self) -> Any:
        """The memory of what it computes, for others that never play at the same time."""
        return self._graph.pool()

    def play(self, numbers: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """The logits of other numbers; they hold until the next step."""
        self._numbers.copy_(numbers)
        self._owner.copy_(owner)
        self._graph.replay()
        return self._logits


class Recordings:
    """The recorded steps of one path over one cache."""

    def __init__(self, plan: LoraBatch) -> None:
        self._plan = plan
        self._seen: Counter[Layout] = Counter()
        self._known: OrderedDict[Layout, Recording] = OrderedDict()
        self._refused = False

    def step(
        self, layout: Layout, numbers: torch.Tensor, compute: Compute, held: Callable[[], object]
    ) -> torch.Tensor:
        """The logits of a step whose `numbers` lie on the GPU. `held` is what its launches read and
        somebody else might let go."""
        if (known := self._known.get(layout)) is not None:
            self._known.move_to_end(layout)
            return known.play(numbers, self._plan.token_mask)
        logits = compute(numbers)
        self._seen[layout] += 1
        if self._seen[layout] == OFTEN and not self._refused:
            self._record(layout, numbers, compute, held())
        if len(self._seen) > SEEN:
            self._seen.clear()
        return logits

    def drop_adapter(self, adapter: str) -> None:
        """Forget the steps with an adapter."""
        self._forget(lambda layout: adapter in layout.adapters)

    def _record(
        self, layout: Layout, numbers: torch.Tensor, compute: Compute, held: object
    ) -> None:
        self._forget(lambda each: each.room != layout.room)
        if len(layout.adapters) > 1:  # a mixture has matrices of its own: the last one's are kept
            self._forget(lambda each: len(each.adapters) > 1 and each.adapters != layout.adapters)
        other = next(iter(self._known.values()), None)
        pool = other.pool if other else None
        try:
            self._known[layout] = Recording(compute, numbers, self._plan, held, pool)
        except RuntimeError as error:
            log.warning("Steps are launched kernel by kernel, which is slower: %s", error)
            self._refused = True
        while len(self._known) > MOST:
            self._known.popitem(last=False)
        del self._seen[layout]

    def _forget(self, which: Callable[[Layout], bool]) -> None:
        for layout in [layout for layout in self._known if which(layout)]:
            del self._known[layout]


def records(like: torch.Tensor) -> bool:
    """Whether steps can be recorded where `like` is."""
    return like.device.type == "cuda"
