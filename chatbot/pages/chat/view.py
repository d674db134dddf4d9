"""What a handler tells the chat page to change: only the keys that are there change."""

from dataclasses import asdict, dataclass
from typing import Any, Self, TypedDict

from chatbot.pages.chat.transcript import Bubble


@dataclass(frozen=True)
class BrowserPosition:
    """Where a browser is: its conversation, and the message that its thread ends at."""

    conversation: str | None = None
    leaf: str | None = None

    @classmethod
    def from_storage(cls, kept: object) -> Self:
        """From the browser's storage, which may hold anything."""
        if not isinstance(kept, dict):
            return cls()
        names = (kept.get("conversation"), kept.get("leaf"))
        conversation, leaf = (name if isinstance(name, str) else None for name in names)
        return cls(conversation, leaf)

    def to_storage(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RatedAnswer:
    """The answer that the "what did you think" card asks about."""

    message: str
    up: bool


class ChatView(TypedDict, total=False):
    """The page's changing parts."""

    token: str
    place: BrowserPosition
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
    rated: RatedAnswer | None
    """None puts the card away."""
