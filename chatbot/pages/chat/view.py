"""Describes what the chat page shows, without its components: only the keys present change.

A view belongs to where its page was when it was asked for, by the page's number (`OpenPages`): a
page that is elsewhere by now drops it.
"""

import itertools
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypedDict

from chatbot.pages.chat import transcript
from chatbot.pages.chat.ownership import owned_leaf
from chatbot.pages.chat.running import RunningAnswers
from chatbot.pages.chat.transcript import Bubble
from chatbot.pages.text import truncate
from feedback.store import Store

REASONS_DOWN = ("Wrong fact", "Not what I asked", "Unclear", "Too long", "Unkind or unsafe")
REASONS_UP = ("Right", "Clear", "Complete", "Friendly")


@dataclass(frozen=True)
class BrowserPosition:
    """Names what a browser has open: a conversation, the message that its thread ends at (a
    question while its answer is under way), and the number of the page that shows it."""

    conversation: str | None = None
    leaf: str | None = None
    number: int = 0

    @classmethod
    def from_storage(cls, stored: object) -> Self:
        """Read a position from the browser's storage, which may hold anything."""
        if not isinstance(stored, dict):
            return cls()
        ids = (stored.get("conversation"), stored.get("leaf"))
        conversation, leaf = (found if isinstance(found, str) else None for found in ids)
        number = stored.get("number")
        return cls(conversation, leaf, number if isinstance(number, int) else 0)

    def to_storage(self) -> dict[str, Any]:
        """Return what the browser stores."""
        return asdict(self)


def page_number(stored_position: object) -> int:
    """Return the number of the page that sends what its browser has stored."""
    return BrowserPosition.from_storage(stored_position).number


def message_id_at(shown: str, index: object) -> str:
    """Return the id of the message behind the bubble at `index` of the ids that the page sends
    ("-" for none), "" when there is none; it may send anything."""
    ids = shown.split()
    if not isinstance(index, int) or not 0 <= index < len(ids):
        return ""
    return ids[index].strip("-")


@dataclass(frozen=True)
class RatedAnswer:
    """Names the answer that the "what did you think" card asks about, and its thumb."""

    message_id: str
    up: bool

    @classmethod
    def from_page(cls, text: str) -> Self | None:
        """Read what `to_page` wrote; the page may send anything."""
        thumb, _, message_id = text.partition(" ")
        return cls(message_id, thumb == "up") if message_id else None

    def to_page(self) -> str:
        """Return what the page keeps: "up msg_..." or "down msg_..."."""
        return f"{'up' if self.up else 'down'} {self.message_id}"


@dataclass(frozen=True)
class Versions:
    """Holds the messages that a conversation's versions end at, oldest first, None for an empty
    thread, and which of them the page shows."""

    leaves: list[str | None]
    shown: int

    def at(self, step: int) -> str | None:
        """Return the leaf so many steps on from the one shown, at most to the first or last."""
        return self.leaves[min(max(self.shown + step, 0), len(self.leaves) - 1)]


class ChatView(TypedDict, total=False):
    """Holds the changing parts of the chat page; an absent key leaves its part as it is."""

    number: int
    """The page that the view belongs to."""
    opening: bool
    """Whether it answers the page's load: a page that shows something by then drops it."""
    token: str
    position: BrowserPosition
    after: str | None
    """The id of the message that `bubbles` follow; None: they are the whole thread."""
    bubbles: list[Bubble]
    thumb: tuple[str, str | None]
    """An answer's id, and the thumb that was just given or taken back there."""
    text: str
    """The answer so far, in place of the last bubble; comes with `thought` alone."""
    thought: str
    """The thought so far, above it."""
    draft: str
    """The text in the composer."""
    busy: bool
    """Whether an answer is under way."""
    banner: str
    """HTML, empty for none."""
    toast: str
    """Shown once, for a few seconds."""
    versions: Versions
    titles: list[tuple[str, str]]
    """(title, id) of the person's conversations; comes with `position` alone."""
    pair: tuple[str, str] | None
    """The ids of two answers to choose between; None puts the card away."""
    rated: RatedAnswer | None
    """None puts the card away."""


class OpenPages:
    """Holds what each browser tab (a Gradio session) shows, with a number that grows at each move.

    A number tells late from current: a view of an earlier number is dropped by the page, and what
    somebody did on an earlier number is not done at what the tab shows now.
    """

    def __init__(self) -> None:
        # Upwards also over a restart of the server, which open pages survive.
        self._next = itertools.count(time.time_ns() // 1_000_000)
        self._shown: dict[str, BrowserPosition] = {}
        self._first: dict[str, int] = {}
        self._lock = threading.Lock()

    def open(self, session: str, position: BrowserPosition) -> BrowserPosition | None:
        """Have the tab show its first page; return it with its number, None when somebody was
        quick and the tab shows one by now."""
        with self._lock:
            if session in self._shown:
                return None
            self._shown[session] = opened = replace(position, number=next(self._next))
            self._first[session] = opened.number
            return opened

    def move(self, session: str, position: BrowserPosition) -> BrowserPosition:
        """Have the tab show `position`; return it with its new number."""
        with self._lock:
            self._shown[session] = moved = replace(position, number=next(self._next))
            return moved

    def move_from(self, session: str, position: BrowserPosition) -> BrowserPosition | None:
        """Return `position` with a new number; None when the tab shows another page by now."""
        with self._lock:
            if not self.is_current(session, position.number):
                return None
            self._shown[session] = moved = replace(position, number=next(self._next))
            return moved

    def advance(self, session: str, position: BrowserPosition) -> None:
        """Note that the thread on the page of this number has grown to `position`."""
        with self._lock:
            shown = self._shown.get(session)  # None of a tab that was closed meanwhile
            if shown is not None and shown.number == position.number:
                self._shown[session] = position

    def is_current(self, session: str, number: int) -> bool:
        """Tell whether the tab shows the page of this number still, or its first page, of which
        it had not heard when it sent this number."""
        shown = self._shown.get(session)
        if shown is None or shown.number == number:
            return True
        return number < shown.number == self._first.get(session)

    def is_open(self, session: str) -> bool:
        """Tell whether the tab shows anything yet."""
        return session in self._shown

    def shown(self, session: str) -> BrowserPosition:
        """Return what the tab shows."""
        return self._shown.get(session, BrowserPosition())

    def forget(self, session: str) -> None:
        """Forget a tab that was closed."""
        self._shown.pop(session, None)
        self._first.pop(session, None)


class ChatViews:
    """Makes views of what is stored and of what is under way."""

    def __init__(self, store: Store, running: RunningAnswers) -> None:
        self._store, self._running = store, running

    def position(self, person: str, stored: object) -> BrowserPosition:
        """Return the position in a browser's storage, which may hold anything, if it is this
        person's, else that of an empty page. A question that has been answered meanwhile gives
        way to its answer."""
        position = BrowserPosition.from_storage(stored)
        conversation, leaf = owned_leaf(self._store, person, position.conversation, position.leaf)
        owned = replace(position, conversation=conversation, leaf=leaf.id if leaf else None)
        return self.answered(owned)

    def answered(self, position: BrowserPosition) -> BrowserPosition:
        """Return the position at the newest answer, if it is at a question that has one and none
        is under way."""
        if position.leaf is None or self._running.find(position.leaf):
            return position
        leaf = self._store.message(position.leaf)
        answers = self._store.children(leaf.id) if leaf.role == "user" else []
        return replace(position, leaf=answers[-1].id) if answers else position

    def versions(self, position: BrowserPosition) -> Versions:
        """Return the versions of the conversation: one a branch, and the newest one is where the
        page stands if that is before a branch's end, which is what an undo leads to."""
        conversation, leaf = position.conversation, position.leaf
        leaves: list[str | None] = [*self._store.leaves(conversation)] if conversation else []
        if leaf not in leaves:
            leaves.append(leaf)
        return Versions(leaves, leaves.index(leaf))

    def whole(self, person: str, position: BrowserPosition) -> ChatView:
        """Return the whole page at `position`."""
        return {**self.tail(person, position, None), "titles": self.titles(person)}

    def titles(self, person: str) -> list[tuple[str, str]]:
        """Return (title, id) of the person's conversations, newest first."""
        return [(truncate(c.title, 48), c.id) for c in self._store.conversations(person)]

    def tail(self, person: str, position: BrowserPosition, after: str | None) -> ChatView:
        """Return the page at `position` as a change of one that ends at message `after`."""
        bubbles = transcript.thread_bubbles(self._store, position.leaf, person)
        busy = self._running.find(position.leaf) is not None
        if busy:
            bubbles.append(transcript.TYPING)
        return {
            "number": position.number,
            "position": position,
            "after": after,
            "bubbles": transcript.bubbles_after(bubbles, after),
            "busy": busy,
            "versions": self.versions(position),
            "banner": "",
            "pair": None,
            "rated": None,
        }
