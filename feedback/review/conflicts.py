"""Keeps reviewers from overruling each other, or people's edits, without knowing it.

Who decides says which version of the answer was seen: the decision in force then, and the newest
feedback. What came since is reported instead of overruled.
"""

from collections.abc import Sequence

from feedback.errors import TalkbackError
from feedback.kinds import Feedback
from feedback.review.decision_row import Decision

_NONE = "none"
_VERBS = {
    "approve": "approved",
    "correct": "corrected it to",
    "reject": "rejected it",
    "edit": "edited it to",
    "thumb": "disliked it",
    "comment": "commented",
}


class DecisionConflictError(TalkbackError):
    """Reports what was decided or said about an answer since the reviewer saw it."""


def review_version(given: Sequence[Feedback], in_force: Decision | None) -> str:
    """Return what names the state of an answer that a reviewer sees."""
    newest = next((one.id for one in reversed(given) if _is_seen(one)), _NONE)
    return f"{in_force.id if in_force else _NONE}.{newest}"


def check_seen(
    message_id: str, seen: str, given: Sequence[Feedback], in_force: Decision | None
) -> None:
    """Raise DecisionConflictError unless the version that was seen is the one there is now."""
    if seen == review_version(given, in_force):
        return
    decision_id, _, feedback_id = seen.partition(".")
    shown = [one for one in given if _is_seen(one)]
    ids = [one.id for one in shown]
    later = shown[ids.index(feedback_id) + 1 :] if feedback_id in ids else shown
    news = [_describe_feedback(one) for one in later]
    if in_force and in_force.id != decision_id:
        news.insert(0, _describe_decision(in_force))
    raise _conflict(message_id, news or ["feedback on it was deleted"])


def check_own(in_force: Decision, reviewer: str) -> None:
    """Raise DecisionConflictError if the decision in force is another reviewer's."""
    if in_force.reviewer != reviewer:
        raise _conflict(in_force.message_id, [_describe_decision(in_force)])


def _conflict(message_id: str, news: Sequence[str]) -> DecisionConflictError:
    return DecisionConflictError(
        f"nothing was saved, because {message_id} is not as you saw it: {'; '.join(news)}. "
        "Look at it as it is now, then decide again"
    )


def _is_seen(feedback: Feedback) -> bool:
    """Tell whether a reviewer is shown it: not a thumb up, a choice or a signal."""
    disliked = feedback.kind == "thumb" and feedback.value["up"] is False
    return disliked or feedback.kind in ("edit", "comment")


def _describe_decision(decision: Decision) -> str:
    return _describe(decision.reviewer, decision.action, decision.answer, decision.created_at)


def _describe_feedback(one: Feedback) -> str:
    return _describe(one.person, one.kind, one.value.get("text"), one.created_at)


def _describe(who: str, what: str, text: str | None, when: str) -> str:
    words = f' "{text}"' if text else ""
    return f"{who} {_VERBS[what]}{words} on {when[:10]} at {when[11:16]} UTC"
