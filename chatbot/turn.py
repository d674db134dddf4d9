"""Streams one answer to whoever listens, and stores what was delivered.

What people saw is what is kept: an answer is stored when its stream ends, is cancelled, or loses
its listener, always with its speaker.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from chatbot.conversation import QuestionPosition
from chatbot.engine.stream import Stream, StreamCursor, TokenLogprob
from chatbot.metrics import Metrics
from feedback.ids import new_id
from feedback.messages import Speaker
from feedback.store import Store


class Turn:
    """Streams one answer and stores it. Iterate once, for text deltas; after that it is stored. Or
    take batches from a `cursor` on each `on_update`, and ``close`` it once it has ``ended``.

    ``conversation_id``, ``user_message_id`` (the question's) and ``message_id`` (the answer's)
    are there from the start. ``speaker`` and ``text`` are there after the end. ``cancel`` may
    come from any thread and any number of times, also after the end.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        position: QuestionPosition,
        stream: Stream,
        speaker: Speaker,
    ) -> None:
        self.conversation_id = str(position.conversation_id)
        self.user_message_id = position.question_id
        self.message_id = new_id("msg")
        self.alternatives: list[Turn] = []
        """Further answers to the same question, where several were asked for; iterate each."""
        self._num_delivered: int | None = 0
        """How many deltas have been delivered; None: whatever comes counts as delivered."""
        self._store, self._metrics = store, metrics
        self._stream = stream
        self._speaker = speaker
        self._stored = False
        self._lock = threading.Lock()

    @property
    def text(self) -> str:
        """Return what has been delivered so far; after the end, the answer as it is stored."""
        return "".join(self._stream.deltas[: self._num_delivered])

    @property
    def thought(self) -> str:
        """Return what the model has thought before the answer; empty where it does not think."""
        return self._stream.thought

    @property
    def thought_tokens(self) -> int:
        """Return how many of the completion's tokens the thought has."""
        return self._stream.thought_tokens

    def cursor(self) -> StreamCursor:
        """Return a cursor at the start of the answer, for who reads it in batches."""
        return StreamCursor(self._stream)

    @property
    def ended(self) -> bool:
        """Tell whether the answer is complete. Whoever iterates stores it, or `close` does."""
        return self._stream.finish is not None

    @property
    def adapter(self) -> str:
        """Return the id of the adapter that answers."""
        return self._speaker.adapter

    @property
    def error(self) -> str | None:
        """Return why the answer broke off; None if it did not."""
        return self._stream.error

    @property
    def speaker(self) -> Speaker:
        """Return who gave the answer, how, and how it ended; not final before the end."""
        return self._speaker

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """Return each token's log-probability; None if not asked for or nothing was generated."""
        asked = self._speaker.sampling.get("logprobs") is not None
        return self._stream.logprobs if asked and self._speaker.source == "model" else None

    @property
    def token_counts(self) -> list[int]:
        """Return how many tokens had come with each delta; later tokens are no part of the text."""
        return self._stream.token_counts

    def __iter__(self) -> Iterator[str]:
        try:
            for number, delta in enumerate(self._stream, 1):
                self._num_delivered = number
                yield delta
        finally:
            self.close()

    def on_update(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the answer begins and when it has ended.

        It is called on the engine's thread (`Stream.on_update`). All that comes from now on counts
        as delivered.
        """
        self._num_delivered = None
        self._stream.on_update(callback)

    def wait(self, seconds: float) -> bool:
        """Block until the answer has ended, at most so many seconds; return whether it has."""
        return self._stream.wait(seconds)

    def cancel(self) -> None:
        """Stop the answer: the iteration ends soon after, and what was delivered is stored."""
        self._stream.cancel()

    def close(self) -> None:
        """End the answer if it has not ended, and store it.

        It is on the disk when this returns, or when the `write` around it commits.
        """
        with self._lock:
            if self._stored:
                return
            self._stream.cancel()
            self._stream.wait()
            self._speaker = self._final_speaker()
            self._store.add_message(
                self.conversation_id,
                self.user_message_id,
                "assistant",
                self.text,
                self._speaker,
                self.message_id,
                thought=self.thought,
            )
            self._stored = True
            self._store.on_rollback(self._mark_unstored)
            self._metrics.record_answer(self._speaker)

    def _mark_unstored(self) -> None:
        """Note that the transaction was rolled back, so that `close` stores the answer again."""
        self._stored = False

    def _final_speaker(self) -> Speaker:
        """Return the speaker with the stream's numbers; "cancelled" if not all was delivered."""
        stream = self._stream
        whole = self.text == stream.text
        return replace(
            self._speaker,
            prompt_tokens=stream.prompt_tokens,
            completion_tokens=stream.completion_tokens,
            first_token_ms=stream.first_token_ms,
            total_ms=stream.total_ms,
            thought_ms=stream.thought_ms,
            finish=stream.finish or "error" if whole else "cancelled",
            message_id=self.message_id,
        )
