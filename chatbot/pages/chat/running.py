"""Keeps the answers that are being generated: each ends and is stored by itself, whether a page
follows it or not, and any number of pages may.

Pages follow at a limited rate: each update costs server time and a repaint in the browser.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

from chatbot.turn import Turn

UPDATES_PER_SECOND = 10
SIGN_OF_LIFE_SECONDS = 2.0
"""A page that hears nothing for several times as long takes its connection for lost (`chat.js`)."""


class RunningAnswer:
    """Follows one turn; ``retry_of`` is the id of the earlier answer that it is to be compared
    with, None where there is none. ``on_end`` is called once, on the engine's thread."""

    def __init__(
        self, turn: Turn, retry_of: str | None, on_end: Callable[["RunningAnswer"], None]
    ) -> None:
        self.turn = turn
        self.retry_of = retry_of
        self.stored: Future[None] = Future()
        """Done once the answer is on the disk; it has the exception that kept it from there."""
        self._on_end = on_end
        self._begun = threading.Event()
        self._first_end = threading.Lock()

    def on_update(self) -> None:
        """Note that the text has begun, or has ended (see `Turn.on_update`)."""
        self._begun.set()
        if self.turn.ended and self._first_end.acquire(blocking=False):
            self._on_end(self)

    def texts(self, per_second: float = UPDATES_PER_SECOND) -> Iterator[tuple[str, str]]:
        """Yield the thought and the text so far: when they begin, then at most `per_second` times a
        second, and the whole of both at the end. In silence they come again now and then, as a
        sign of life.
        """
        while not self._begun.wait(SIGN_OF_LIFE_SECONDS):
            yield "", ""
        cursor, thought, text, ended = self.turn.cursor(), "", "", False
        spoken = time.monotonic()
        while not ended:
            deltas, ended = cursor.take()
            thoughts = cursor.take_thoughts()
            thought, text = thought + "".join(thoughts), text + "".join(deltas)
            if thoughts or deltas or time.monotonic() > spoken + SIGN_OF_LIFE_SECONDS:
                spoken = time.monotonic()
                yield thought, text
            if not ended:
                # Tokens do not wake this thread: it would take the interpreter from the engine.
                self.turn.wait(1 / per_second)


class RunningAnswers:
    """Starts answers, and finds the one that is under way to a question."""

    def __init__(self, executor: Executor) -> None:
        """Store answers on `executor`, away from the engine's thread."""
        self._executor = executor
        self._by_question: dict[str, RunningAnswer] = {}

    def start(self, turn: Turn, retry_of: str | None = None) -> RunningAnswer:
        """Take charge of a turn that has begun: it ends and is stored whoever follows it."""
        running = RunningAnswer(turn, retry_of, self._store)
        self._by_question[turn.user_message_id] = running
        turn.on_update(running.on_update)
        return running

    def find(self, question_id: str | None) -> RunningAnswer | None:
        """Return the answer that is under way to a question; None when there is none."""
        return self._by_question.get(question_id or "")

    def _store(self, running: RunningAnswer) -> None:
        closed = self._executor.submit(running.turn.close)
        closed.add_done_callback(lambda done: self._finish(running, done))

    def _finish(self, running: RunningAnswer, closed: "Future[None]") -> None:
        question_id = running.turn.user_message_id
        # Out of the list first: who does not find it there any more finds it in the store.
        if self._by_question.get(question_id) is running:
            del self._by_question[question_id]
        error = closed.exception()
        running.stored.set_exception(error) if error else running.stored.set_result(None)
