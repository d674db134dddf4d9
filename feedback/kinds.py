"""What people can say of an answer, and the shape of each: checked before a row is written."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from feedback.errors import TalkbackError

Kind = Literal["thumb", "edit", "choice", "comment", "signal"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIGNALS = ("copy", "retry")
LONGEST = 32_768
"""Characters of one text: longer than any answer worth learning, short enough to read."""


class BadFeedback(TalkbackError):
    """Feedback of an unknown kind or shape; says what was sent and what is wanted."""


class KeyTaken(BadFeedback):
    """An idempotency key that came with other feedback before."""


def check(kind: str, value: Mapping[str, Any]) -> None:
    """Raise BadFeedback unless ``value`` is what feedback of this ``kind`` says."""
    if kind not in KINDS:
        raise BadFeedback(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    if not isinstance(value, Mapping):
        raise BadFeedback(f"the value of a {kind} is an object, not {value!r}")
    _CHECKS[kind](value)


def _thumb(value: Mapping[str, Any]) -> None:
    _only(value, "thumb", needed={"up"}, allowed={"reasons"})
    if value["up"] is not None and not isinstance(value["up"], bool):
        raise BadFeedback(f'"up" is true, false or null (taken back), not {value["up"]!r}')
    reasons = value.get("reasons", [])
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise BadFeedback(f'"reasons" is a list of texts, not {reasons!r}')
    for reason in reasons:
        _text("thumb", "reasons", reason)


def _edit(value: Mapping[str, Any]) -> None:
    _only(value, "edit", needed={"text"})
    _text("edit", "text", value["text"])


def _comment(value: Mapping[str, Any]) -> None:
    _only(value, "comment", needed={"text"})
    _text("comment", "text", value["text"])


def _choice(value: Mapping[str, Any]) -> None:
    _only(value, "choice", needed={"over"}, allowed={"tie"})
    _text("choice", "over", value["over"])
    if not isinstance(value.get("tie", False), bool):
        raise BadFeedback(f'"tie" is true or false, not {value["tie"]!r}')


def _signal(value: Mapping[str, Any]) -> None:
    _only(value, "signal", needed={"name"})
    if value["name"] not in SIGNALS:
        raise BadFeedback(f'"name" is one of {", ".join(SIGNALS)}, not {value["name"]!r}')


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "thumb": _thumb,
    "edit": _edit,
    "choice": _choice,
    "comment": _comment,
    "signal": _signal,
}


def _only(
    value: Mapping[str, Any], kind: str, *, needed: set[str], allowed: set[str] | None = None
) -> None:
    known = needed | (allowed or set())
    for key in needed - set(value):
        raise BadFeedback(f'a {kind} needs "{key}"; it was given {sorted(value)}')
    for key in set(value) - known:
        raise BadFeedback(f"a {kind} has no {key!r}; it takes {', '.join(sorted(known))}")


def _text(kind: str, key: str, text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise BadFeedback(f'"{key}" of a {kind} is a text that says something, not {text!r}')
    if len(text) > LONGEST:
        raise BadFeedback(f'"{key}" of a {kind} has {len(text)} characters; at most {LONGEST}')
