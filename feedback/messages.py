"""Defines what a conversation consists of: messages in a tree, and who gave each answer."""

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from feedback.errors import TalkbackError

Role = Literal["user", "assistant"]


class NotFoundError(TalkbackError, KeyError):
    """Reports that there is no such conversation or message; names the id."""

    def __str__(self) -> str:
        return str(self.args[0])


class BadMessageError(TalkbackError):
    """Reports a message that cannot be part of its conversation."""


@dataclass(frozen=True)
class Conversation:
    """Holds one person's conversation; its messages are a tree."""

    id: str
    person: str
    title: str
    created_at: str


@dataclass(frozen=True)
class Message:
    """Holds one turn; siblings under a parent are retries or edited questions."""

    id: str
    conversation_id: str
    parent_id: str | None
    role: Role
    content: str
    created_at: str
    thought: str | None = None
    """What the model thought before this answer: for people to look into, and for templates that
    have it in later prompts. Nothing else reads it."""

    def to_dict(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        turn = {"role": self.role, "content": self.content}
        return turn | {"thought": self.thought} if self.thought else turn


@dataclass(frozen=True)
class Speaker:
    """Records who gave an answer, and how: all that is needed to understand feedback on it."""

    adapter: str
    base: str
    base_revision: str | None = None
    system_prompt: str = ""
    exemplars: list[str] = field(default_factory=list)
    """Ids of the approved answers that were in the prompt, or that were given as they stand."""
    sampling: dict[str, Any] = field(default_factory=dict)
    source: Literal["model", "approved"] = "model"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_ms: float | None = None
    total_ms: float | None = None
    finish: Literal["stop", "length", "cancelled", "error"] = "stop"
    message_id: str = ""
    """Filled in by the store."""
    house: bool | None = None
    """Whether it was made with the settings of the house alone; None where that is not known."""
    thought_ms: float | None = None
    """How long the model thought before the answer; None where it did not."""

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """Return a row of the table ``speaker`` with its JSON parsed."""
        parsed = {key: json.loads(row[key]) for key in ("exemplars", "sampling")}
        house = None if row["house"] is None else bool(row["house"])
        return cls(**{**dict(row), **parsed, "house": house})
