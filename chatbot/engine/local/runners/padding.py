"""Parts of several streams as blocks: rows side by side, padded to one length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatbot.engine.local.runners.runner import Chunk


@dataclass
class Group:
    """Parts of rows side by side. What pads them lies beyond a row's end in the cache: it is
    written over before anyone may see it."""

    parts: list[Chunk]
    tokens: int
    """Of each row, padding included."""
    start: int
    """The last position that one of them starts at."""

    def take(self, part: Chunk, length: int, padding: int) -> bool:
        """Have one more, unless it is not the next row's or would take more padding."""
        rows, tokens = len(self.parts), max(self.tokens, len(part.ids))
        start = max(self.start, part.start)
        more = (tokens - self.tokens) * rows + tokens - len(part.ids)
        if part.row != self.first + rows or more > padding or start + tokens > length:
            return False
        self.parts.append(part)
        self.tokens, self.start = tokens, start
        return True

    @property
    def first(self) -> int:
        """The row of the first part; the others follow it."""
        return self.parts[0].row

    @property
    def size(self) -> int:
        """Tokens of all rows, padding included."""
        return len(self.parts) * self.tokens

    @property
    def end(self) -> int:
        """The position after the last that is written."""
        return self.start + self.tokens

    @property
    def adapters(self) -> list[str | None]:
        """Row by row."""
        return [part.adapter for part in self.parts]

    def ids(self) -> Iterator[int]:
        """All tokens, row after row."""
        for part in self.parts:
            yield from part.ids
            yield from [0] * (self.tokens - len(part.ids))

    def rows(self) -> Iterator[int]:
        """The cache's row of each."""
        for part in self.parts:
            yield from [part.row] * self.tokens

    def positions(self) -> Iterator[int]:
        """The position of each."""
        for part in self.parts:
            yield from range(part.start, part.start + self.tokens)

    def told(self) -> Iterator[int]:
        """Which of the tokens have their logits told."""
        for index, part in enumerate(self.parts):
            end = index * self.tokens + len(part.ids)
            yield from range(end - part.num_logits, end)


def grouped(parts: Sequence[Chunk], length: int, padding: int) -> list[Group]:
    """The parts, together those that at most so much padding each makes equal; the rows of the
    cache have so many positions."""
    groups: list[Group] = []
    for part in parts:
        if not (groups and groups[-1].take(part, length, padding)):
            groups.append(Group([part], len(part.ids), part.start))
    return groups
