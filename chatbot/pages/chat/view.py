"""Describes what the chat page shows, without its components: only the keys present change."""

from dataclasses import asdict, dataclass
from typing import Any, Self, TypedDict

from chatbot.pages.chat import transcript
from chatbot.pages.chat.transcript import Bubble
from chatbot.pages.text import truncate
from feedback.store import Store


@dataclass(frozen=True)
class BrowserPosition:
    """Names what a browser has open: a conversation, and the message that its thread ends at."""

    conversation: str | None = None
    leaf: str | None = None

    @classmethod
    def from_storage(cls, stored: object) -> Self:
        """Read a position from the browser's storage, which may hold anything."""
        if not isinstance(stored, dict):
            return cls()
        ids = (stored.get("conversation"), stored.get("leaf"))
        conversation, leaf = (found if isinstance(found, str) else None for found in ids)
        return cls(conversation, leaf)

    def to_storage(self) -> dict[str, Any]:
        """Return what the browser stores."""
        return asdict(self)


@dataclass(frozen=True)
class RatedAnswer:
    """Names the answer that the "what did you think" card asks about, and its thumb."""

    message_id: str
    up: bool


class ChatView(TypedDict, total=False):
    """Holds the changing parts of the chat page; an absent key leaves its part as it is."""

    token: str
    position: BrowserPosition
    bubbles: list[Bubble]
    thumbs: list[str | None]
    """The person's thumb on each answer in `bubbles`; without it those on the page stay."""
    draft: str
    """The text in the composer."""
    busy: bool
    """Whether an answer is under way."""
    banner: str
    """HTML, empty for none."""
    toast: str
    """Shown once, for a few seconds."""
    titles: list[tuple[str, str]]
    """(title, id) of the person's conversations."""
    pair: tuple[str, str] | None
    """The ids of two answers to choose between; None puts the card away."""
    rated: RatedAnswer | None
    """None puts the card away."""


def view_at(store: Store, person: str, position: BrowserPosition) -> ChatView:
    """Return the whole page as it is stored at `position`, with no answer under way."""
    bubbles = transcript.thread_bubbles(store, position.leaf, person)
    return {
        "position": position,
        "bubbles": bubbles,
        "thumbs": transcript.thumb_values(store, bubbles, person),
        "titles": [(truncate(c.title, 48), c.id) for c in store.conversations(person)],
        "busy": False,
        "banner": "",
        "pair": None,
        "rated": None,
    }
