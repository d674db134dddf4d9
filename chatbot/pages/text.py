"""Text on its way to the page and back: what people and models write is shown, never obeyed.

Gradio's own sanitiser stays on; this is the line before it: no tag, no picture is ever born.
"""

import difflib
import re
from datetime import UTC, datetime
from html import escape
from pathlib import Path

_JOINER = "\u2060"  # invisible, without width: a tag with it after its "<" is no tag
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_OPENING = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
_ALIKE = 0.4  # below it the texts share only small words, and marks would be noise
_WORDS = re.compile(r"\s+|\w+(?:[.,:]\d+)*|[^\w\s]")  # a price or a time is one word


def escape_markdown(text: str) -> str:
    """Markdown that shows `text` with its tags and pictures as plain characters.

    Code keeps its exact characters: Markdown escapes it, and people copy it.
    """
    parts = _CODE.split(text)
    return "".join(
        part if index % 2 else _OPENING.sub(lambda m: m[0] + _JOINER, part)
        for index, part in enumerate(parts)
    )


def unescape_markdown(text: str) -> str:
    """The text that somebody typed over a `shown` one, without its marks."""
    return re.sub(f"(?<=[<!]){_JOINER}", "", text)


def truncate(text: str, limit: int = 60) -> str:
    """The first words of `text` on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def base_name(base: str) -> str:
    """A base as people call it: a folder by its last part, a Hub id as it stands."""
    return Path(base).name if Path(base).is_absolute() else base


def mark_differences(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, with what went as <del> in the first and what came as <ins>."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    if matcher.ratio() < _ALIKE:
        return escape(before), escape(after)
    left, right = [], []
    for kind, a, b, c, d in matcher.get_opcodes():
        left.append(_marked("del", old[a:b], kind != "equal"))
        right.append(_marked("ins", new[c:d], kind != "equal"))
    return "".join(left), "".join(right)


def _marked(tag: str, words: list[str], changed: bool) -> str:
    text = escape("".join(words))
    return f"<{tag}>{text}</{tag}>" if changed and text else text


def relative_time(then: str, now: datetime | None = None) -> str:
    """How long ago an ISO time was, in words that need no time zone: "5 min ago", "12 Mar 2026"."""
    moment = datetime.fromisoformat(then)
    minutes = int(((now or datetime.now(UTC)) - moment).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    if minutes < 24 * 60:
        return f"{minutes // 60} h ago"
    return f"{moment.day} {moment:%b %Y}"
