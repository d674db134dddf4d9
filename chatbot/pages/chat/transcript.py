"""A stored thread as the chat shows it: bubbles that carry their message ids, and small notes.

A note stands above the answer it belongs to: who speaks from here on, where the words come from,
what became of a correction. Answers and questions carry their id in `metadata`, notes carry none.
"""

from collections.abc import Iterable
from html import escape
from typing import Any

from chatbot.pages.text import escape_markdown
from feedback.messages import Message, Speaker
from feedback.review.decisions import decision_on
from feedback.store import Store

Bubble = dict[str, Any]

TYPING: Bubble = {"role": "assistant", "content": '<span class="tb-typing"></span>'}

_OUTCOME = {
    "approve": ("learned", "✓ A reviewer approved your correction"),
    "correct": ("learned", "✓ A reviewer corrected this answer"),
    "reject": ("plain", "A reviewer read your correction and kept the answer"),
}


def thread_bubbles(store: Store, leaf: str | None, person: str) -> list[Bubble]:
    """The thread that ends at `leaf`, as Gradio's messages."""
    shown_so_far: list[Bubble] = []
    before: str | None = None
    for message in store.thread(leaf) if leaf else []:
        speaker = store.speaker(message.id) if message.role == "assistant" else None
        shown_so_far += [*_notes(store, message, speaker, before, person), stored_bubble(message)]
        before = speaker.adapter if speaker and speaker.source == "model" else before
    return shown_so_far


def stored_bubble(message: Message) -> Bubble:
    """One message with its id."""
    return message_bubble(message.role, message.content, message.id)


def message_bubble(role: str, text: str, message_id: str | None = None) -> Bubble:
    """Words that somebody said; without an id while they are on their way."""
    row: Bubble = {"role": role, "content": escape_markdown(text) or "(no words)"}
    return row | {"metadata": {"id": message_id}} if message_id else row


def thumb_values(store: Store, rows: Iterable[Bubble], person: str) -> list[str | None]:
    """What this person thought of each answer, in the order in which Gradio counts them."""
    return [_thumb(store, row, person) for row in rows if row["role"] == "assistant"]


def message_id_at(history: list[Bubble], index: object) -> str | None:
    """The stored message behind a bubble that the browser names; it may be anything."""
    if not isinstance(index, int) or not 0 <= index < len(history):
        return None
    found = (history[index].get("metadata") or {}).get("id")
    return str(found) if found else None


def _thumb(store: Store, row: Bubble, person: str) -> str | None:
    found = message_id_at([row], 0)
    up = store.thumb_of(found, person) if found else None
    return {True: "Like", False: "Dislike", None: None}[up]


def _notes(
    store: Store, message: Message, speaker: Speaker | None, before: str | None, person: str
) -> list[Bubble]:
    notes = []
    if speaker and speaker.source == "approved":
        notes.append(_note("approved", "✓ Approved answer, checked by a person"))
    elif speaker and before and speaker.adapter != before:
        name = f"<code>{escape(speaker.adapter)}</code>"
        notes.append(_note("new", f"A newer version, {name}, speaks from here on", safe=True))
    if speaker and speaker.finish == "cancelled":
        notes.append(_note("stopped", "Stopped before the end"))
    elif speaker and speaker.finish == "error":
        notes.append(_note("stopped", "This answer broke off; try again"))
    if speaker:
        notes += _correction(store, message, person)
    return notes


def _correction(store: Store, message: Message, person: str) -> list[Bubble]:
    """What became of this person's own correction of an answer."""
    mine = [f for f in store.feedback_on(message.id) if f.kind == "edit" and f.person == person]
    if not mine:
        return []
    decision = decision_on(store, message.id)
    if decision is None:
        return [_note("plain", "✎ Your correction is with a reviewer")]
    return [_note(*_OUTCOME[decision.action])]


def _note(kind: str, text: str, *, safe: bool = False) -> Bubble:
    words = text if safe else escape(text)
    return {"role": "assistant", "content": f'<span class="tb-note tb-{kind}">{words}</span>'}


def find_answer_id(history: list[Bubble], text: object) -> str | None:
    """The newest answer that says exactly this: what somebody copied."""
    for index in reversed(range(len(history))):
        words = "".join(part.get("text", "") for part in history[index]["content"])
        if history[index]["role"] == "assistant" and words == text:
            return message_id_at(history, index)
    return None
