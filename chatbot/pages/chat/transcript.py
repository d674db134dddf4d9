"""Turns a stored thread into Gradio's chat messages: bubbles that carry message ids, and notes.

A note stands above the answer it belongs to: which adapter speaks from here on, that the answer is
an approved one, what became of a correction. Answers and questions carry their message id in
`metadata`, notes carry none.
"""

from collections.abc import Iterable
from typing import Any

from chatbot.pages.html import render
from chatbot.pages.text import escape_markdown
from feedback.messages import Message, Speaker
from feedback.review.decisions import decision_on
from feedback.store import Store

Bubble = dict[str, Any]
"""A message as `gr.Chatbot` takes it: role, content, perhaps metadata."""

TYPING: Bubble = {"role": "assistant", "content": render("typing.html")}

_DECISION_NOTES = {
    "approve": ("learned", "✓ A reviewer approved your correction"),
    "correct": ("learned", "✓ A reviewer corrected this answer"),
    "reject": ("plain", "A reviewer read your correction and kept the answer"),
}
"""A reviewer's action -> (CSS kind, text) of the note that tells the person who corrected."""


def thread_bubbles(store: Store, leaf: str | None, person: str) -> list[Bubble]:
    """Return the thread that ends at message `leaf`, with the notes that `person` sees."""
    bubbles: list[Bubble] = []
    previous_adapter: str | None = None
    for message in store.thread(leaf) if leaf else []:
        speaker = store.speaker(message.id) if message.role == "assistant" else None
        notes = _notes(store, message, speaker, previous_adapter, person)
        bubbles += [*notes, stored_bubble(message)]
        if speaker and speaker.source == "model":
            previous_adapter = speaker.adapter
    return bubbles


def stored_bubble(message: Message) -> Bubble:
    """Return the bubble of a stored message, with its id."""
    return message_bubble(message.role, message.content, message.id)


def message_bubble(role: str, text: str, message_id: str | None = None) -> Bubble:
    """Return a bubble; it has no id while its message is still being sent or generated."""
    bubble: Bubble = {"role": role, "content": escape_markdown(text) or "(no words)"}
    return bubble | {"metadata": {"id": message_id}} if message_id else bubble


def thumb_values(store: Store, bubbles: Iterable[Bubble], person: str) -> list[str | None]:
    """Return `person`'s thumb for each assistant bubble (notes too), as `gr.Chatbot` counts them
    in its `feedback_value`: "Like", "Dislike" or None."""
    return [_thumb(store, bubble, person) for bubble in bubbles if bubble["role"] == "assistant"]


def message_id_at(history: list[Bubble], index: object) -> str | None:
    """Return the id of the stored message behind the bubble at `index`, None when there is none;
    the browser sends the index, so it may be anything."""
    if not isinstance(index, int) or not 0 <= index < len(history):
        return None
    found = (history[index].get("metadata") or {}).get("id")
    return str(found) if found else None


def find_answer_id(history: list[Bubble], text: object) -> str | None:
    """Return the id of the newest answer whose text is exactly `text`, which somebody copied."""
    for index in reversed(range(len(history))):
        content = "".join(part.get("text", "") for part in history[index]["content"])
        if history[index]["role"] == "assistant" and content == text:
            return message_id_at(history, index)
    return None


def _thumb(store: Store, bubble: Bubble, person: str) -> str | None:
    message_id = message_id_at([bubble], 0)
    up = store.thumb_of(message_id, person) if message_id else None
    return {True: "Like", False: "Dislike", None: None}[up]


def _notes(
    store: Store,
    message: Message,
    speaker: Speaker | None,
    previous_adapter: str | None,
    person: str,
) -> list[Bubble]:
    """Return the notes above a message; only answers, which have a speaker, get any."""
    if speaker is None:
        return []
    notes = []
    if speaker.source == "approved":
        notes.append(_note("approved", "✓ Approved answer, checked by a person"))
    elif previous_adapter and speaker.adapter != previous_adapter:
        notes.append(_note_bubble(render("note_new_adapter.html", adapter=speaker.adapter)))
    if speaker.finish == "cancelled":
        notes.append(_note("stopped", "Stopped before the end"))
    elif speaker.finish == "error":
        notes.append(_note("stopped", "This answer broke off; try again"))
    return notes + _correction_notes(store, message, person)


def _correction_notes(store: Store, message: Message, person: str) -> list[Bubble]:
    """Return the note that tells `person` what became of their correction of an answer."""
    feedback = store.feedback_on(message.id)
    if not any(given.kind == "edit" and given.person == person for given in feedback):
        return []
    decision = decision_on(store, message.id)
    if decision is None:
        return [_note("plain", "✎ Your correction is with a reviewer")]
    return [_note(*_DECISION_NOTES[decision.action])]


def _note(kind: str, text: str) -> Bubble:
    return _note_bubble(render("note.html", kind=kind, text=text))


def _note_bubble(html: str) -> Bubble:
    return {"role": "assistant", "content": html}
