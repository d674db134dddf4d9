"""Renders one answer that waits for a reviewer: its conversation, what people said of it, and the
differences to a proposed answer.

Reviewers are who an attacker writes to: text of people and models reaches HTML through the
templates alone, which escape it.
"""

from collections.abc import Sequence

from markupsafe import Markup

from chatbot.pages import fragments
from chatbot.pages.html import render
from chatbot.pages.text import mark_differences, person_name, relative_time, truncate
from feedback.review.decisions import BadDecisionError
from feedback.review.queue import Proposal, QueueItem

APPROVE_LABELS = {True: "Approve the correction", False: "Approve the answer as it is"}
"""The approve button's text, by whether a correction is proposed."""
CONFIRMATIONS = {
    "approve": "Saved. It is at work from the next question on.",
    "correct": "Saved. Your correction is at work from the next question on.",
    "reject": "Saved. Nothing of it will train.",
}
_CUT = {
    "length": "It was cut here at the limit of its length.",
    "cancelled": "It was stopped here before its end.",
    "error": "It broke off here by an error.",
}
"""What reviewers see of an answer without its end, which cannot be approved as it is."""
_DECIDED = {"approve": "approved", "correct": "corrected", "reject": "rejected"}
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


def decision_on_text(item: QueueItem, action: str, text: str) -> tuple[str, str | None]:
    """Return the action that a click amounts to with the text in the box, and its right answer.

    To approve a text that the reviewer has changed is a correction; a correction that changes
    nothing raises BadDecisionError, because it would approve the answer that people disliked.
    """
    if action == "reject":
        return action, None
    text = text.strip()
    if not text:
        raise BadDecisionError("The right answer is empty. Write it, or reject the answer.")
    shown = [proposal.text for proposal in item.proposals] or [item.answer.content]
    unchanged = next((one for one in shown if one.strip() == text), None)
    if action == "approve" and unchanged is not None:
        return action, unchanged
    if unchanged is not None and not item.proposals:
        raise BadDecisionError("This is the answer as it was given. Change it to what is right.")
    return "correct", text


def item_label(item: QueueItem) -> str:
    """Return the two lines that stand for an answer in the queue: its question, why it waits."""
    return f"{truncate(item.question, 34)}\n{item.why}"


def queue_count(waiting: int, listed: int) -> Markup:
    """Return how many answers wait, and how many are listed where that is fewer."""
    return render("queue_count.html", waiting=waiting, listed=listed)


def item_context(item: QueueItem) -> Markup:
    """Return why the answer waits or how it was decided, people's comments, and the conversation
    up to the answer."""
    signals = item.why.split(", ") if item.why else []
    decided = [_decided(item)] if item.decision else []
    return render(
        "review_context.html",
        tags=(*signals, *item.reasons, *decided),
        comments=[*item.comments, *(f"Preferred to: {text}" for text in item.preferred_to)],
        messages=item.exchange.thread[:-1],
    )


def _decided(item: QueueItem) -> str:
    assert item.decision
    verb, when = _DECIDED[item.decision.action], relative_time(item.decision.created_at)
    text = f": {truncate(item.decision.answer)}" if item.decision.answer else ""
    return f"{item.decision.reviewer} {verb} it {when}{text}"


def side_by_side(item: QueueItem) -> tuple[Markup, Markup]:
    """Return the answer as it was given and all proposed ones, with their differences marked."""
    note = _CUT.get(item.finish, "")
    if item.proposed is None:
        return _side("The answer", item.answer.content, note), _side("The right answer", "")
    marked = [mark_differences(item.answer.content, one.text) for one in item.proposals]
    proposals = [
        {"signed": _signed(one), "text": text}
        for one, (_, text) in zip(item.proposals, marked, strict=True)
    ]
    title = "They disagree" if item.disagree else "Proposed instead"
    proposed = render("review_proposals.html", title=title, proposals=proposals[::-1])
    return _side("The answer", marked[-1][0], note), proposed


def proposal_choices(item: QueueItem) -> list[tuple[str, str]]:
    """Return (label, text) of each proposed text, the newest first."""
    return [(f"{_signed(one)}: {truncate(one.text)}", one.text) for one in item.proposals[::-1]]


def _signed(proposal: Proposal) -> str:
    people = " and ".join(map(person_name, proposal.people))
    return f"{people}, {relative_time(proposal.created_at)}"


def _side(title: str, text: str, note: str = "") -> Markup:
    return render("review_side.html", title=title, text=text, note=note)
