"""Orders the sequences that wait for a free slot: first come, first served."""

from collections import deque
from collections.abc import Iterator

from chatbot.engine.local.sequence import Sequence


class WaitingQueue:
    """Holds the sequences that no slot has been free for yet.

    It has no lock: requests come from any thread and the scheduler takes them on its own, so who
    owns the queue guards it.
    """

    def __init__(self) -> None:
        self._sequences: deque[Sequence] = deque()

    def append(self, sequence: Sequence) -> None:
        """Add a sequence behind all others."""
        self._sequences.append(sequence)

    def pop_next(self) -> Sequence | None:
        """Take the sequence that gets the next free slot, the one that has waited longest.

        Another order, such as short prompts first, would be chosen here.
        """
        return self._sequences.popleft() if self._sequences else None

    def remove_cancelled(self) -> list[Sequence]:
        """Take out the sequences whose streams are cancelled, and return them."""
        cancelled = [each for each in self._sequences if each.stream.cancelled]
        self._sequences = deque(each for each in self._sequences if not each.stream.cancelled)
        return cancelled

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)
