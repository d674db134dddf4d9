"""Routes a request to the worker whose prefix cache holds its prompt, unless that one is busier.

While few streams run they are kept on one worker: on all cores it reads the weights once for all.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from chatbot.engine.protocol import Request
from chatbot.engine.workers.worker_handle import WorkerHandle

BLOCK_TOKENS = 32
"""Tokens of a block: prompts are compared block by block."""
PREFIX_SLACK = 1
"""How many streams more than the best other worker the one with the cached prefix may have."""
SMALL_BATCH = 4
"""A worker with fewer streams than this takes more before another one is used."""
MAX_BLOCKS = 20_000
"""How many blocks are remembered, the least recently used forgotten first."""


class PrefixRouter:
    """Remembers which worker has computed which beginnings of prompts."""

    def __init__(self) -> None:
        self._block_owners: OrderedDict[int, WorkerHandle] = OrderedDict()

    def choose(self, request: Request, workers: Sequence[WorkerHandle]) -> WorkerHandle:
        """Return the worker that is to answer, and remember that it computes this prompt."""
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
        """Return the worker that has computed most of the prompt; None if less than half of it."""
        half = blocks[len(blocks) // 2 :]
        known = (self._block_owners.get(block) for block in reversed(half))
        return next((reader for reader in known if reader is not None), None)


def _block_hashes(request: Request) -> Iterator[int]:
    """Yield for each block of the prompt a hash of it, of all blocks before it and the adapter."""
    block_hash = hash(request.adapter)
    for start in range(0, len(request.prompt_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block_hash = hash((block_hash, *request.prompt_ids[start : start + BLOCK_TOKENS]))
        yield block_hash
