"""Pads the chunks of neighbouring cache rows to one length, so that they are computed as one
rectangle of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatbot.engine.local.runners.runner import Chunk


@dataclass
class PaddedBatch:
    """Holds chunks of rows side by side. Padding comes after a row's last token: what it writes to
    the cache is overwritten before any token may read it."""

    chunks: list[Chunk]
    num_tokens: int
    """Of each row, padding included."""
    last_start: int
    """The highest position that one of them starts at."""

    def try_add(self, chunk: Chunk, max_length: int, max_padding: int) -> bool:
        """Add a chunk and tell so, unless it is not the next row's, would take more padding than
        `max_padding` tokens, or would reach beyond the `max_length` positions of a row."""
        num_rows, num_tokens = len(self.chunks), max(self.num_tokens, len(chunk.ids))
        last_start = max(self.last_start, chunk.start)
        padding = (num_tokens - self.num_tokens) * num_rows + num_tokens - len(chunk.ids)
        next_row = self.first_row + num_rows
        if chunk.row != next_row or padding > max_padding or last_start + num_tokens > max_length:
            return False
        self.chunks.append(chunk)
        self.num_tokens, self.last_start = num_tokens, last_start
        return True

    @property
    def first_row(self) -> int:
        """Return the cache row of the first chunk; the others follow it."""
        return self.chunks[0].row

    @property
    def size(self) -> int:
        """Return the number of tokens of all rows, padding included."""
        return len(self.chunks) * self.num_tokens

    @property
    def end(self) -> int:
        """Return the position after the last that is written."""
        return self.last_start + self.num_tokens

    @property
    def adapters(self) -> list[str | None]:
        """Return the adapter of each row."""
        return [chunk.adapter for chunk in self.chunks]

    def ids(self) -> Iterator[int]:
        """Yield all token ids, row after row."""
        for chunk in self.chunks:
            yield from chunk.ids
            yield from [0] * (self.num_tokens - len(chunk.ids))

    def rows(self) -> Iterator[int]:
        """Yield the cache row of each token."""
        for chunk in self.chunks:
            yield from [chunk.row] * self.num_tokens

    def positions(self) -> Iterator[int]:
        """Yield the position of each token."""
        for chunk in self.chunks:
            yield from range(chunk.start, chunk.start + self.num_tokens)

    def logit_rows(self) -> Iterator[int]:
        """Yield the indices of the tokens whose logits are wanted."""
        for index, chunk in enumerate(self.chunks):
            end = index * self.num_tokens + len(chunk.ids)
            yield from range(end - chunk.num_logits, end)


def pad_chunks(chunks: Sequence[Chunk], max_length: int, max_padding: int) -> list[PaddedBatch]:
    """Put chunks together as long as each adds at most `max_padding` tokens of padding; the cache's
    rows have `max_length` positions."""
    batches: list[PaddedBatch] = []
    for chunk in chunks:
        if not (batches and batches[-1].try_add(chunk, max_length, max_padding)):
            batches.append(PaddedBatch([chunk], len(chunk.ids), chunk.start))
    return batches
