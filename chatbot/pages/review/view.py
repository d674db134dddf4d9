"""One answer that waits for a reviewer, as HTML: its talk, what people said, the words that differ.

Every word of a person or a model is escaped here; reviewers are who an attacker writes to.
"""

from html import escape

from chatbot.pages import theme
from chatbot.pages.text import mark_differences, truncate
from feedback.messages import Message
from feedback.review.decisions import newest_edit
from feedback.review.queue import QueueItem
from feedback.store import Store

APPROVE_LABELS = {True: "Approve the correction", False: "Approve the answer as it is"}
CONFIRMATIONS = {
    "approve": "Saved. It is at work from the next question on.",
    "correct": "Saved. Your correction is at work from the next question on.",
    "reject": "Saved. Nothing of it will train.",
}
EMPTY_ANSWER = theme.banner("The right answer is empty. Write it, or reject the answer.", "error")
EMPTY_QUEUE = theme.empty_state(
    "All caught up",
    "Answers that people correct or dislike will wait here. "
    "Nothing trains before a reviewer agrees.",
)


def following_id(items: list[QueueItem], message_id: str | None) -> str | None:
    """The answer behind this one in the queue; the first when it was the last or is gone."""
    ids = [item.answer.id for item in items]
    if message_id in ids[:-1]:
        return ids[ids.index(message_id) + 1]
    return ids[0] if ids else None


def proposed_text(store: Store, message_id: str) -> str:
    """The text that approving would approve."""
    edit = newest_edit(store.feedback_on(message_id))
    return str(edit.value["text"]) if edit else store.message(message_id).content


def item_label(item: QueueItem) -> str:
    """A line of the queue."""
    return f"{truncate(item.question, 34)}\n{item.why}"


def queue_count(waiting: int, listed: int) -> str:
    """How many answers wait, and that the list is shorter when it is."""
    more = f", the {listed} most pressing are listed" if waiting > listed else ""
    answers = "1 answer waits" if waiting == 1 else f"{waiting} answers wait"
    return f'<div class="tb-count" role="status">{answers}{more}</div>'


def item_context(item: QueueItem) -> str:
    """The conversation up to the answer, and what people said of it."""
    talk = "".join(_turn(message) for message in item.exchange.thread[:-1])
    tags = "".join(f"<li>{escape(tag)}</li>" for tag in (*item.why.split(", "), *item.reasons))
    comments = "".join(f"<blockquote>{escape(text)}</blockquote>" for text in item.comments)
    return (
        f'<ul class="tb-tags">{tags}</ul>{comments}'
        f'<div class="tb-talk" role="log" aria-label="The conversation">{talk}</div>'
    )


def side_by_side(item: QueueItem) -> tuple[str, str]:
    """The answer as it was given beside the proposed one, with their differences marked."""
    if item.proposed is None:
        return _side("The answer", escape(item.answer.content)), _side("The right answer", "")
    left, right = mark_differences(item.answer.content, item.proposed)
    return _side("The answer", left), _side("Proposed instead", right)


def _side(title: str, text: str) -> str:
    body = f'<div class="tb-words">{text}</div>' if text else ""
    return f"<h4>{title}</h4>{body}"


def _turn(message: Message) -> str:
    who = "Person" if message.role == "user" else "Bot"
    return (
        f'<div class="tb-turn tb-{message.role}"><span class="tb-who">{who}</span>'
        f'<div class="tb-words">{escape(message.content)}</div></div>'
    )
