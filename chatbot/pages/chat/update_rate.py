"""Limits how often the page changes while an answer streams: each update costs server time and a
repaint in the browser."""

import threading
from collections.abc import Iterator

from chatbot.turn import Turn

UPDATES_PER_SECOND = 10


def throttled_text(turn: Turn, per_second: float = UPDATES_PER_SECOND) -> Iterator[str]:
    """Yield the text so far: when the answer begins, then at most `per_second` times a second, and
    the whole of it at the end."""
    begun = threading.Event()
    turn.on_update(begun.set)
    begun.wait()
    cursor, text, ended = turn.cursor(), "", False
    while not ended:
        deltas, ended = cursor.take()
        if deltas:
            text += "".join(deltas)
            yield text
        if not ended:
            # Tokens do not wake this thread: it would take the interpreter from the engine.
            turn.wait(1 / per_second)
