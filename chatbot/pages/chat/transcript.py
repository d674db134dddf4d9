"""Turns a stored thread into Gradio's chat messages: bubbles that carry message ids, and notes.

A note stands above the answer it belongs to: that another adapter speaks from here on, that the
answer is an approved one, what became of a correction; that it broke off stands below it. Answers
and questions carry their message's id, notes carry none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatbot.pages.html import render
from chatbot.pages.text import escape_markdown, unescape_markdown
from feedback.kinds import Feedback
from feedback.messages import Message, Speaker
from feedback.review.decision_row import Decision
from feedback.review.decisions import decisions_in_force
from feedback.store import Store

Bubble = dict[str, Any]
"""A role and its text, as Markdown; where it is a stored message's, its id and the thumb on it;
where it is folded, its title.
`paint.js` makes the messages of `gr.Chatbot` of them."""

TYPING: Bubble = {"role": "assistant", "text": render("typing.html"), "typing": True}

_DECISION_NOTES = {
    "approve": ("learned", "✓ A reviewer approved your correction"),
    "correct": ("learned", "✓ A reviewer corrected this answer"),
    "reject": ("plain", "A reviewer read your correction and kept the answer"),
}
"""A reviewer's action -> (CSS kind, text) of the note that tells the person who corrected."""


_BROKEN_OFF = {
    "cancelled": "Stopped before the end",
    "error": "This answer broke off; try again",
}
"""How an answer ended -> the note that says so, for answers that broke off."""


def thread_bubbles(store: Store, leaf: str | None, person: str) -> list[Bubble]:
    """Return the thread that ends at message `leaf`, with the notes and thumbs of `person`.

    Takes four queries, however long the thread is.
    """
    thread = store.thread(leaf) if leaf else []
    ids = [message.id for message in thread if message.role == "assistant"]
    speakers = store.speakers(ids)
    given = store.feedback_by_message(ids)
    decisions = decisions_in_force(store, ids)
    bubbles: list[Bubble] = []
    previous_adapter: str | None = None
    for message in thread:
        speaker = speakers.get(message.id)
        mine = [one for one in given.get(message.id, ()) if one.person == person]
        correction = _correction(message, mine, decisions.get(message.id))
        bubbles += _speaker_notes(store, speaker, previous_adapter)
        bubbles += _thought(message, speaker)
        bubbles += [correction.note] if correction else []
        text = correction.text if correction else message.content
        bubbles.append(message_bubble(message.role, text, message.id, _thumb(mine)))
        bubbles += _end_notes(speaker)
        if speaker and speaker.source == "model":
            previous_adapter = speaker.adapter
    return bubbles


def bubbles_after(bubbles: list[Bubble], message_id: str | None) -> list[Bubble]:
    """Return the bubbles that follow the message's; all for None."""
    ids = [bubble.get("id") for bubble in bubbles]
    return bubbles[ids.index(message_id) + 1 :] if message_id else bubbles


def message_bubble(
    role: str, text: str, message_id: str | None = None, thumb: str | None = None
) -> Bubble:
    """Return a bubble; it has no id while its message is still being generated."""
    bubble: Bubble = {"role": role, "text": escape_markdown(text) or "(no words)"}
    return bubble | ({"id": message_id} if message_id else {}) | ({"thumb": thumb} if thumb else {})


def shown_text(store: Store, answer_id: str, person: str) -> str:
    """Return the text that `person` reads of an answer: their correction where there is one."""
    bubbles = thread_bubbles(store, answer_id, person)
    (shown,) = [bubble["text"] for bubble in bubbles if bubble.get("id") == answer_id]
    return unescape_markdown(shown)


def thumb_value(up: bool | None) -> str | None:
    """Return a thumb in Gradio's words."""
    return {True: "Like", False: "Dislike", None: None}[up]


def find_answer_id(bubbles: list[Bubble], text: object) -> str | None:
    """Return the id of the newest answer whose text is exactly `text`, which somebody copied."""
    for bubble in reversed(bubbles):
        if bubble["role"] == "assistant" and bubble["text"] == text:
            return bubble.get("id")
    return None


@dataclass(frozen=True)
class _Correction:
    """Holds what stands in the place of an answer that was corrected, and the note above it."""

    text: str
    note: Bubble


def _correction(
    answer: Message, given: Sequence[Feedback], decision: Decision | None
) -> _Correction | None:
    """Return what became of a person's correction; None for an answer that they did not edit."""
    edits = [one for one in given if one.kind == "edit"]
    if not edits:
        return None
    if decision is None or edits[-1].created_at > decision.created_at:
        note = _note("plain", "✎ Your version is with a reviewer")
        return _Correction(edits[-1].value["text"], note)
    text = decision.answer or answer.content
    return _Correction(text, _note(*_DECISION_NOTES[decision.action]))


def _thumb(given: Sequence[Feedback]) -> str | None:
    """Return the newest thumb in Gradio's words; None for one never given or taken back."""
    thumbs = [one.value["up"] for one in given if one.kind == "thumb"]
    return thumb_value(thumbs[-1]) if thumbs else None


def _speaker_notes(
    store: Store, speaker: Speaker | None, previous_adapter: str | None
) -> list[Bubble]:
    """Return the notes above a message on who gave it; only answers have a speaker."""
    if speaker is None:
        return []
    notes = []
    if speaker.source == "approved":
        notes.append(_note("approved", "✓ Approved answer, checked by a person"))
    elif previous_adapter and speaker.adapter != previous_adapter:
        newer = _is_newer(store, speaker.adapter, previous_adapter)
        version = "A newer version" if newer else "An earlier version"
        notes.append(_note("new", f"{version} speaks from here on"))
    return notes


def _thought(message: Message, speaker: Speaker | None) -> list[Bubble]:
    """Return the fold above an answer with what the model thought before; none where it did not."""
    if not message.thought:
        return []
    seconds = ((speaker and speaker.thought_ms) or 0) / 1000
    title = f"Thought for {seconds:.0f} s" if seconds >= 1 else "Thought for a moment"
    return [{"role": "assistant", "text": escape_markdown(message.thought), "title": title}]


def _end_notes(speaker: Speaker | None) -> list[Bubble]:
    """Return the note below an answer that did not come to its end."""
    text = _BROKEN_OFF.get(speaker.finish) if speaker else None
    return [_note("stopped", text)] if text else []


def _is_newer(store: Store, adapter: str, other: str) -> bool:
    """Tell whether an adapter was made after another one, which it need not be: a rollback
    promotes an earlier one."""
    row = store.row(
        "select a.rowid > b.rowid as newer from adapter a, adapter b where a.id = ? and b.id = ?",
        (adapter, other),
    )
    return row is None or bool(row["newer"])


def _note(kind: str, text: str) -> Bubble:
    return {"role": "assistant", "text": render("note.html", kind=kind, text=text)}
