"""What a handler tells the chat page to change: only the keys that are there change."""

from dataclasses import asdict, dataclass
from typing import Any, Self, TypedDict

from chatbot.pages.chat.transcript import Bubble


@dataclass(frozen=True)
class Place:
    """Where a browser is: its conversation, and the message that its thread ends at."""

    conversation: str | None = None
    leaf: str | None = None

    @classmethod
    def read(cls, kept: object) -> Self:
        """From the browser's storage, which may hold anything."""
        if not isinstance(kept, dict):
            return cls()
        names = (kept.get("conversation"), kept.get("leaf"))
        conversation, leaf = (name if isinstance(name, str) else None for name in names)
        return cls(conversation, leaf)

    def keep(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rated:
    """The answer that the "what did you think" card asks about."""

    message: str
    up: bool


class View(TypedDict, total=False):
    """The page's changing parts."""

    token: str
    place: Place
    rows: list[Bubble]
    thumbs: list[str | None]
    """The person's of all answers in `rows`; without it those on the page stay."""
    draft: str
    busy: bool
    notice: str
    """HTML, empty for none."""
    toast: str
    """Said once, in passing."""
    titles: list[tuple[str, str]]
    """(title, id) of the person's conversations."""
    pair: tuple[str, str] | None
    """Two answers to choose between; None puts the card away."""
    rated: Rated | None
    """None puts the card away."""
