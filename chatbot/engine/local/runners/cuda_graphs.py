"""Captures small forwards as CUDA graphs and replays them.

A small forward takes longer to launch, kernel by kernel, than to compute. A shape that comes again
and again is therefore captured once, as a CUDA graph, and then launched whole.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from chatbot.engine.local.multi_lora import LoraBatch

log = logging.getLogger(__name__)

CAPTURE_AFTER = 3
"""Forwards of one shape until it is captured, which takes about as long as one of them."""
MAX_GRAPHS = 128
"""Graphs that are kept."""
MAX_COUNTED_SHAPES = 1024
"""Shapes whose forwards are counted."""

ComputeLogits = Callable[[torch.Tensor], torch.Tensor]
"""Inputs of a forward [3, tokens] -> its logits [logit rows, vocab], by launches that depend on
nothing but the forward's shape."""


class BatchShape(NamedTuple):
    """Describes rows side by side in a forward, with as many tokens each."""

    first_row: int
    num_rows: int
    num_tokens: int
    """Of each row."""
    kv_length: int
    """Positions of the cache that they attend to."""


@dataclass(frozen=True)
class ForwardShape:
    """Describes a forward but for its inputs: how many tokens in which rows, and their adapters.

    Forwards of one shape are the same launches, so it is the key of their graph.
    """

    batches: tuple[BatchShape, ...]
    logit_rows: tuple[int, ...]
    """Indices of the tokens whose logits are wanted."""
    adapters: tuple[str, ...]
    mixed: bool
    """Whether tokens differ in their adapter."""
    cache_capacity: tuple[int, int]
    """Rows and positions: a cache that has grown lies at other addresses."""


class CudaGraph:
    """Holds the captured launches of one forward. They read and write the memory that they did at
    the capture, so inputs are copied there first."""

    def __init__(
        self,
        compute: ComputeLogits,
        inputs: torch.Tensor,
        lora_batch: LoraBatch,
        kept_alive: object,
        pool: Any,
    ) -> None:
        self._inputs = inputs.clone()
        self._token_mask = lora_batch.token_mask.clone()
        self._kept_alive = kept_alive, compute
        self._graph = torch.cuda.CUDAGraph()
        lora_batch.use_mask(self._token_mask)
        # Other threads may load an adapter meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = compute(self._inputs)

    @property
    def pool(self) -> Any:
        """Return the memory pool of its results, for graphs that are never replayed at the same
        time."""
        return self._graph.pool()

    def replay(self, inputs: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits for other inputs; they hold until the next forward."""
        self._inputs.copy_(inputs)
        self._token_mask.copy_(token_mask)
        self._graph.replay()
        return self._logits


class CudaGraphCache:
    """Captures the forwards of one runner over one cache, and replays them by their shape."""

    def __init__(self, lora_batch: LoraBatch) -> None:
        self._lora_batch = lora_batch
        self._counts: Counter[ForwardShape] = Counter()
        self._graphs: OrderedDict[ForwardShape, CudaGraph] = OrderedDict()
        """Least recently used first."""
        self._capture_failed = False

    def run(
        self,
        shape: ForwardShape,
        inputs: torch.Tensor,
        compute: ComputeLogits,
        kept_alive: Callable[[], object],
    ) -> torch.Tensor:
        """Return the logits of a forward whose `inputs` lie on the GPU. `kept_alive` returns what
        its launches read and others might free."""
        if (graph := self._graphs.get(shape)) is not None:
            self._graphs.move_to_end(shape)
            return graph.replay(inputs, self._lora_batch.token_mask)
        logits = compute(inputs)
        self._counts[shape] += 1
        if self._counts[shape] == CAPTURE_AFTER and not self._capture_failed:
            self._capture(shape, inputs, compute, kept_alive())
        if len(self._counts) > MAX_COUNTED_SHAPES:
            self._counts.clear()
        return logits

    def drop_adapter(self, adapter: str) -> None:
        """Forget the graphs with an adapter."""
        self._forget(lambda shape: adapter in shape.adapters)

    def _capture(
        self, shape: ForwardShape, inputs: torch.Tensor, compute: ComputeLogits, kept_alive: object
    ) -> None:
        # A cache that grew was moved: graphs of its former capacity would write to freed memory.
        self._forget(lambda known: known.cache_capacity != shape.cache_capacity)
        if len(shape.adapters) > 1:
            # Only the last mixture's stacked matrices are kept (`LoraLayer`), and so its graphs.
            self._forget(lambda known: len(known.adapters) > 1 and known.adapters != shape.adapters)
        other = next(iter(self._graphs.values()), None)
        pool = other.pool if other else None
        try:
            self._graphs[shape] = CudaGraph(compute, inputs, self._lora_batch, kept_alive, pool)
        except RuntimeError as error:
            log.warning("Steps are launched kernel by kernel, which is slower: %s", error)
            self._capture_failed = True
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        del self._counts[shape]

    def _forget(self, which: Callable[[ForwardShape], bool]) -> None:
        for shape in [shape for shape in self._graphs if which(shape)]:
            del self._graphs[shape]


def supports_graphs(like: torch.Tensor) -> bool:
    """Tell whether forwards on `like`'s device can be captured."""
    return like.device.type == "cuda"
