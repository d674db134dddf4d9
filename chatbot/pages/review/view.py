"""Renders one answer that waits for a reviewer: its conversation, what people said of it, and the
differences to a proposed answer.

Reviewers are who an attacker writes to: text of people and models reaches HTML through the
templates alone, which escape it.
"""

from collections.abc import Sequence

from markupsafe import Markup

from chatbot.pages import fragments
from chatbot.pages.html import render
from chatbot.pages.text import mark_differences, truncate
from feedback.review.decisions import newest_edit
from feedback.review.queue import QueueItem
from feedback.store import Store

APPROVE_LABELS = {True: "Approve the correction", False: "Approve the answer as it is"}
"""The approve button's text, by whether a correction is proposed."""
CONFIRMATIONS = {
    "approve": "Saved. It is at work from the next question on.",
    "correct": "Saved. Your correction is at work from the next question on.",
    "reject": "Saved. Nothing of it will train.",
}
EMPTY_ANSWER = fragments.banner(
    "The right answer is empty. Write it, or reject the answer.", "error"
)
EMPTY_QUEUE = fragments.empty_state(
    "All caught up",
    "Answers that people correct or dislike will wait here. "
    "Nothing trains before a reviewer agrees.",
)


def following_id(items: Sequence[QueueItem], message_id: str | None) -> str | None:
    """Return the id of the answer after this one in the queue; the first when it was the last or
    is gone, None for an empty queue."""
    ids = [item.answer.id for item in items]
    if message_id in ids[:-1]:
        return ids[ids.index(message_id) + 1]
    return ids[0] if ids else None


def proposed_text(store: Store, message_id: str) -> str:
    """Return the text that approving would approve: the newest edit, else the answer itself."""
    edit = newest_edit(store.feedback_on(message_id))
    return str(edit.value["text"]) if edit else store.message(message_id).content


def item_label(item: QueueItem) -> str:
    """Return the two lines that stand for an answer in the queue: its question, why it waits."""
    return f"{truncate(item.question, 34)}\n{item.why}"


def queue_count(waiting: int, listed: int) -> Markup:
    """Return how many answers wait, and how many are listed where that is fewer."""
    return render("queue_count.html", waiting=waiting, listed=listed)


def item_context(item: QueueItem) -> Markup:
    """Return why the answer waits, people's comments, and the conversation up to the answer."""
    return render(
        "review_context.html",
        tags=(*item.why.split(", "), *item.reasons),
        comments=item.comments,
        messages=item.exchange.thread[:-1],
    )


def side_by_side(item: QueueItem) -> tuple[Markup, Markup]:
    """Return the answer as it was given and the proposed one, with their differences marked."""
    if item.proposed is None:
        return _side("The answer", item.answer.content), _side("The right answer", "")
    left, right = mark_differences(item.answer.content, item.proposed)
    return _side("The answer", left), _side("Proposed instead", right)


def _side(title: str, text: str) -> Markup:
    return render("review_side.html", title=title, text=text)
