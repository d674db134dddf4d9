"""Defines what is kept of a reviewer's decision."""

from dataclasses import dataclass
from typing import Literal

Action = Literal["approve", "correct", "reject"]


@dataclass(frozen=True)
class Decision:
    """Holds a decision on an answer; ``feedback_id`` is the last feedback that it knew of."""

    id: str
    message_id: str
    reviewer: str
    action: Action
    answer: str | None
    note: str
    feedback_id: str | None
    created_at: str
