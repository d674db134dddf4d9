"""Which worker answers: the one that has read the conversation so far, unless it is busier.

Few streams are kept together: one worker on all cores reads the weights once for all of them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from chatbot.engine.protocol import Request
from chatbot.engine.workers.worker_handle import WorkerHandle

BLOCK_TOKENS = 32
"""Prompts are compared by so many tokens at a time."""
PREFIX_SLACK = 1
"""What is read already is worth so many streams more beside it."""
SMALL_BATCH = 4
"""So many streams are few."""
MAX_BLOCKS = 20_000
"""Blocks."""


class PrefixRouter:
    """Remembers who has read which beginnings of prompts."""

    def __init__(self) -> None:
        self._block_owners: OrderedDict[int, WorkerHandle] = OrderedDict()

    def choose(self, request: Request, workers: Sequence[WorkerHandle]) -> WorkerHandle:
        """One of them; it is taken to have read the prompt from now on."""
        blocks = list(_block_hashes(request))
        least_busy = min(workers, key=lambda worker: worker.num_streams)
        batching = [
            worker
            for worker in workers
            if worker.info.scales_with_cores and 0 < worker.num_streams < SMALL_BATCH
        ]
        chosen = max(batching, key=lambda worker: worker.num_streams, default=least_busy)
        owner = self._prefix_owner(blocks)
        if (
            owner is not None
            and owner in workers
            and owner.num_streams <= chosen.num_streams + PREFIX_SLACK
        ):
            chosen = owner
        for block in blocks:
            self._block_owners[block] = chosen
            self._block_owners.move_to_end(block)
        while len(self._block_owners) > MAX_BLOCKS:
            self._block_owners.popitem(last=False)
        return chosen

    def _prefix_owner(self, blocks: Sequence[int]) -> WorkerHandle | None:
        """Who has read the most of it, and at least half."""
        half = blocks[len(blocks) // 2 :]
        known = (self._block_owners.get(block) for block in reversed(half))
        return next((reader for reader in known if reader is not None), None)


def _block_hashes(request: Request) -> Iterator[int]:
    """A number for each block of the prompt and all that is before it."""
    block_hash = hash(request.adapter)
    for start in range(0, len(request.prompt_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block_hash = hash((block_hash, *request.prompt_ids[start : start + BLOCK_TOKENS]))
        yield block_hash
