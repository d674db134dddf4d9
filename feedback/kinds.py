"""Defines the kinds of feedback on an answer, and validates the shape of each before it is kept."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from feedback.errors import TalkbackError

FeedbackKind = Literal["thumb", "edit", "choice", "comment", "signal"]
FEEDBACK_KINDS: tuple[FeedbackKind, ...] = get_args(FeedbackKind)
SIGNALS = ("copy", "retry")
MAX_TEXT_LENGTH = 32_768
"""Characters of one text: longer than any answer worth learning, short enough to read."""


class BadFeedbackError(TalkbackError):
    """Reports feedback of an unknown kind or shape; names what was sent and what is wanted."""


class IdempotencyKeyTakenError(BadFeedbackError):
    """Reports an idempotency key that came with other feedback before."""


@dataclass(frozen=True)
class Feedback:
    """Holds one piece of feedback of a person on an answer; its ``kind`` shapes its ``value``."""

    id: str
    message_id: str
    person: str
    kind: FeedbackKind
    value: dict[str, Any]
    idempotency_key: str | None
    created_at: str
    known: bool | None = None
    """Whether a key or a login names the person; None where that was not recorded."""

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """Return a row of the table ``feedback`` with its JSON parsed."""
        known = None if row["known"] is None else bool(row["known"])
        return cls(**{**dict(row), "value": json.loads(row["value"]), "known": known})


def validate(kind: str, value: Mapping[str, Any]) -> None:
    """Raise BadFeedbackError unless ``value`` is what feedback of this ``kind`` says."""
    if kind not in FEEDBACK_KINDS:
        raise BadFeedbackError(f"unknown kind {kind!r}; one of {', '.join(FEEDBACK_KINDS)}")
    if not isinstance(value, Mapping):
        raise BadFeedbackError(f"the value of a {kind} is an object, not {value!r}")
    _CHECKS[kind](value)


def _check_thumb(value: Mapping[str, Any]) -> None:
    _check_keys(value, "thumb", required={"up"}, optional={"reasons"})
    if value["up"] is not None and not isinstance(value["up"], bool):
        raise BadFeedbackError(f'"up" is true, false or null (taken back), not {value["up"]!r}')
    reasons = value.get("reasons", [])
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise BadFeedbackError(f'"reasons" is a list of texts, not {reasons!r}')
    for reason in reasons:
        _check_text("thumb", "reasons", reason)


def _check_edit(value: Mapping[str, Any]) -> None:
    _check_keys(value, "edit", required={"text"})
    _check_text("edit", "text", value["text"])


def _check_comment(value: Mapping[str, Any]) -> None:
    _check_keys(value, "comment", required={"text"})
    _check_text("comment", "text", value["text"])


def _check_choice(value: Mapping[str, Any]) -> None:
    _check_keys(value, "choice", required={"over"}, optional={"tie"})
    _check_text("choice", "over", value["over"])
    if not isinstance(value.get("tie", False), bool):
        raise BadFeedbackError(f'"tie" is true or false, not {value["tie"]!r}')


def _check_signal(value: Mapping[str, Any]) -> None:
    _check_keys(value, "signal", required={"name"})
    if value["name"] not in SIGNALS:
        raise BadFeedbackError(f'"name" is one of {", ".join(SIGNALS)}, not {value["name"]!r}')


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "thumb": _check_thumb,
    "edit": _check_edit,
    "choice": _check_choice,
    "comment": _check_comment,
    "signal": _check_signal,
}


def _check_keys(
    value: Mapping[str, Any], kind: str, *, required: set[str], optional: set[str] | None = None
) -> None:
    known = required | (optional or set())
    for key in required - set(value):
        raise BadFeedbackError(f'a {kind} needs "{key}"; it was given {sorted(value)}')
    for key in set(value) - known:
        raise BadFeedbackError(f"a {kind} has no {key!r}; it takes {', '.join(sorted(known))}")


def _check_text(kind: str, key: str, text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise BadFeedbackError(f'"{key}" of a {kind} is a text that says something, not {text!r}')
    if len(text) > MAX_TEXT_LENGTH:
        raise BadFeedbackError(
            f'"{key}" of a {kind} has {len(text)} characters; at most {MAX_TEXT_LENGTH}'
        )
