"""Which worker answers: the one that has read the conversation so far, unless it is busier.

Few streams are kept together: one worker on all cores reads the weights once for all of them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from chatbot.engine.protocol import Request
from chatbot.engine.workers.worker_handle import Worker

BLOCK = 32
"""Prompts are compared by so many tokens at a time."""
SLACK = 1
"""What is read already is worth so many streams more beside it."""
TOGETHER = 4
"""So many streams are few."""
REMEMBERED = 20_000
"""Blocks."""


class Router:
    """Remembers who has read which beginnings of prompts."""

    def __init__(self) -> None:
        self._readers: OrderedDict[int, Worker] = OrderedDict()

    def choose(self, request: Request, workers: Sequence[Worker]) -> Worker:
        """One of them; it is taken to have read the prompt from now on."""
        blocks = list(_blocks(request))
        least = min(workers, key=lambda worker: worker.live)
        few = [worker for worker in workers if worker.ready.grows and 0 < worker.live < TOGETHER]
        chosen = max(few, key=lambda worker: worker.live, default=least)
        reader = self._reader(blocks)
        if reader is not None and reader in workers and reader.live <= chosen.live + SLACK:
            chosen = reader
        for block in blocks:
            self._readers[block] = chosen
            self._readers.move_to_end(block)
        while len(self._readers) > REMEMBERED:
            self._readers.popitem(last=False)
        return chosen

    def _reader(self, blocks: Sequence[int]) -> Worker | None:
        """Who has read the most of it, and at least half."""
        half = blocks[len(blocks) // 2 :]
        known = (self._readers.get(block) for block in reversed(half))
        return next((reader for reader in known if reader is not None), None)


def _blocks(request: Request) -> Iterator[int]:
    """A number for each block of the prompt and all that is before it."""
    mark = hash(request.adapter)
    for start in range(0, len(request.prompt_ids) - BLOCK + 1, BLOCK):
        mark = hash((mark, *request.prompt_ids[start : start + BLOCK]))
        yield mark
