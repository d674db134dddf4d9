"""How often the page changes while an answer streams: each update costs server time and paint."""

import time
from collections.abc import Callable, Iterable, Iterator

UPDATES_PER_SECOND = 15


def paced(
    deltas: Iterable[str],
    per_second: float = UPDATES_PER_SECOND,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """The text so far, at most `per_second` times a second, and the whole of it at the end."""
    text, shown, due = "", None, 0.0
    for delta in deltas:
        text += delta
        if clock() >= due and text != shown:
            due = clock() + 1 / per_second
            shown = text
            yield text
    if text != shown:
        yield text
