"""Defines the exchange: an answer with what it answers, who gave it and who asked.

exchange = store.exchange(message_id)
exchange.question, exchange.answer.content, exchange.speaker, exchange.person
"""

from collections.abc import Sequence
from dataclasses import dataclass

from feedback.messages import Message, NotFoundError, Speaker


@dataclass(frozen=True)
class Exchange:
    """Holds an answer and all that feedback on it has to be understood by."""

    thread: Sequence[Message]
    """From the message that opens the conversation down to the answer."""
    speaker: Speaker | None
    """Who gave the answer; None where that was not recorded."""
    person: str
    """Whose conversation it is."""

    @property
    def answer(self) -> Message:
        """Return the last message of the thread, which feedback and decisions are about."""
        return self.thread[-1]

    @property
    def question(self) -> str:
        """Return the person's last turn; empty when nobody asked."""
        return next(iter(self._user_turns[::-1]), "")

    @property
    def earlier(self) -> list[str]:
        """Return the person's turns before the question, oldest first."""
        return self._user_turns[:-1]

    @property
    def is_complete(self) -> bool:
        """Tell whether the answer was given to its end: a part is no example of anything."""
        ended = self.speaker is None or self.speaker.finish == "stop"
        return ended and bool(self.answer.content.strip())

    @property
    def _user_turns(self) -> list[str]:
        return [message.content for message in self.thread if message.role == "user"]


class Exchanges(dict[str, Exchange]):
    """Maps message ids to exchanges; a missing one raises NotFoundError, which names the id."""

    def __missing__(self, message_id: str) -> Exchange:
        raise NotFoundError(f"no message {message_id!r}")
