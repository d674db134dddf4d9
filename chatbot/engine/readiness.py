"""Tells whether an engine answers: whether it has made a token since it last failed.

    readiness = Readiness(engine, ask)     # ``ask`` has it make a token
    readiness.start()
    readiness.unavailable_reason           # None: it answers

What people ask shows it. Only after a failure, and at the start, the engine is asked for a token of
its own accord; a server that nobody talks to stays as ready as it was.
"""

import logging
import threading
import time
from collections.abc import Callable

from chatbot.engine.protocol import Engine, EngineBusyError
from chatbot.engine.stream import Stream
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

LOOK_SECONDS = 0.25
"""How often streams are looked at."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 8.0
"""Between two tries to have a token made; each pause is twice as long as the last one."""
START_SECONDS = 10
"""How long a start waits for the first token; the server is unready if it takes longer."""


class Readiness:
    """Follows the streams of an engine, and asks for a token when the last outcome was a failure.

    Any thread may call it.
    """

    def __init__(self, engine: Engine, ask: Callable[[], Stream]) -> None:
        self._engine, self._ask = engine, ask
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="readiness", daemon=True)
        # Touched under the lock only.
        self._lock = threading.Lock()
        self._failure: str | None = "no token has been made yet"
        self._num_tokens: dict[Stream, int] = {}
        """Streams that have not ended -> how many tokens they had at the last look."""

    def start(self) -> None:
        """Wait for a first token, but not for long, and follow the engine from then on."""
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while (reason := self.unavailable_reason) and time.monotonic() < deadline:
            if self._closing.wait(0.01):
                return
        if reason:
            log.warning("The server is not ready (/readyz): %s", reason)

    def close(self) -> None:
        """Ask for no more tokens; call it before the engine is closed."""
        self._closing.set()

    def follow_stream(self, stream: Stream) -> None:
        """Take this stream's tokens, or its error, as a sign of whether the engine answers."""
        with self._lock:
            self._num_tokens[stream] = 0

    def record_token(self) -> None:
        """Record that the engine has made a token."""
        with self._lock:
            self._failure = None

    def record_failure(self, reason: str) -> None:
        """Record that the engine has failed to answer: it is unready until it makes a token."""
        with self._lock:
            self._failure = reason

    @property
    def unavailable_reason(self) -> str | None:
        """Return why no request can be answered now; None while requests are answered."""
        reason = self._engine.unavailable_reason
        with self._lock:
            # An engine that comes back has to make a token before it counts as ready.
            self._failure = reason or self._latest_failure()
            return self._failure

    def _latest_failure(self) -> str | None:
        """Return the failure as of the streams now: a token ends it, an error is one."""
        failure, error = self._failure, None
        for stream, before in list(self._num_tokens.items()):
            finish = stream.finish  # read before the tokens: none come after it
            count = max(stream.completion_tokens, len(stream.deltas))
            if count > before:
                failure = None
            if finish == "error":
                error = f"an answer broke off: {stream.error}"
            self._num_tokens[stream] = count
            if finish is not None:
                del self._num_tokens[stream]
        return error or failure

    def _follow(self) -> None:
        pause, next_try = FIRST_PAUSE_SECONDS, 0.0
        probe: Stream | None = None
        while not self._closing.is_set():
            if self.unavailable_reason is None or self._engine.unavailable_reason is not None:
                pause, next_try = FIRST_PAUSE_SECONDS, 0.0
            elif (probe is None or probe.finish) and time.monotonic() >= next_try:
                probe = self._try_to_ask()
                pause, next_try = min(2 * pause, MAX_PAUSE_SECONDS), time.monotonic() + pause
            self._closing.wait(LOOK_SECONDS)

    def _try_to_ask(self) -> Stream | None:
        try:
            stream = self._ask()
        except EngineBusyError:  # then there are streams, which show it
            return None
        except TalkbackError as error:
            self.record_failure(str(error))
            return None
        self.follow_stream(stream)
        return stream
