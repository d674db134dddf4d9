"""Prepares text for the pages: what people and models write is shown, never interpreted.

Gradio's own sanitiser stays on; this is the line of defence before it: no tag and no picture
reaches it.
"""

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from chatbot.pages.html import render

_WORD_JOINER = "\u2060"  # invisible, without width: a tag with it after its "<" is no tag
_TAG_OR_IMAGE_START = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
_MIN_SIMILARITY = 0.4  # below it the texts share only small words, and marks would be noise
_DIFF_TOKEN = re.compile(r"\s+|\w+(?:[.,:]\d+)*|[^\w\s]")  # a price or a time is one word


def escape_markdown(text: str) -> str:
    """Return Markdown that shows `text` with its tags and pictures as plain characters.

    In code too: what is code is for the browser's Markdown to say, and what is not may look like
    it. `chat.js` takes the joiners out of what people copy.
    """
    return _TAG_OR_IMAGE_START.sub(lambda match: match[0] + _WORD_JOINER, text)


def unescape_markdown(text: str) -> str:
    """Return the text that somebody edited in an `escape_markdown` one, without its joiners."""
    return re.sub(f"(?<=[<!]){_WORD_JOINER}", "", text)


def truncate(text: str, limit: int = 60) -> str:
    """Return the first `limit` characters of `text` on one line, with an ellipsis when cut."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def person_name(person: str) -> str:
    """Return a person's name for others to read: a browser without a login has only an id, whose
    end tells it from others."""
    anonymous = re.fullmatch(r"person-[0-9a-z]{26}", person)
    return f"visitor {person[-4:]}" if anonymous else truncate(person, 32)


@dataclass(frozen=True)
class DiffSpan:
    """Holds a piece of one of two compared texts, and whether the other lacks it."""

    text: str
    changed: bool


def mark_differences(before: str, after: str) -> tuple[Markup, Markup]:
    """Return both texts as HTML: deletions marked as `del` in the first, additions as `ins` in
    the second. Texts too different for marks to help come back without any."""
    old, new = _DIFF_TOKEN.findall(before), _DIFF_TOKEN.findall(after)
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    if matcher.ratio() < _MIN_SIMILARITY:
        left, right = [DiffSpan(before, False)], [DiffSpan(after, False)]
    else:
        operations = matcher.get_opcodes()
        left = [DiffSpan("".join(old[i:j]), tag != "equal") for tag, i, j, _, _ in operations]
        right = [DiffSpan("".join(new[i:j]), tag != "equal") for tag, _, _, i, j in operations]
    return render("diff.html", spans=left, tag="del"), render("diff.html", spans=right, tag="ins")


def relative_time(then: str, now: datetime | None = None) -> str:
    """Return how long ago the ISO time `then` was, in words that need no time zone:
    "5 min ago", "12 Mar 2026"."""
    moment = datetime.fromisoformat(then)
    minutes = int(((now or datetime.now(UTC)) - moment).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    if minutes < 24 * 60:
        return f"{minutes // 60} h ago"
    return f"{moment.day} {moment:%b %Y}"
