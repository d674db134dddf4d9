"""How often the page changes while an answer streams: each update costs server time and paint."""

import threading
from collections.abc import Iterator

from chatbot.turn import Turn

UPDATES_PER_SECOND = 10


def throttled_text(turn: Turn, per_second: float = UPDATES_PER_SECOND) -> Iterator[str]:
    """The text so far: at once when it begins, then so many times a second, and the whole of it
    at the end. No token wakes this thread, which would take the interpreter from the engine."""
    news = threading.Event()
    turn.on_update(news.set)
    news.wait()
    cursor, text, ended = turn.cursor(), "", False
    while not ended:
        deltas, ended = cursor.take()
        if deltas:
            text += "".join(deltas)
            yield text
        if not ended:
            turn.wait(1 / per_second)
