"""Which adapter is speaking, since when, and whether a new one was refused, in a line of HTML."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from chatbot.pages.text import relative_time
from chatbot.pages.theme import banner

if TYPE_CHECKING:
    from chatbot.service import Service

# What is wrong with its files, and where they are, is for operators: the adapters page says it.
REFUSED = "A newer version was refused. This one goes on speaking."


@dataclass(frozen=True)
class SpeakerStatus:
    """How things stand; the warning says why a promoted adapter does not speak."""

    adapter: str
    since: str | None
    warning: str


def read_status(service: "Service") -> SpeakerStatus:
    """How things stand with this service now."""
    promotion = service.registry.promotion()
    speaks = promotion is not None and promotion.adapter == service.speaking
    since = promotion.created_at if promotion and speaks else None
    return SpeakerStatus(service.speaking, since, service.warning)


def render_status(now: SpeakerStatus) -> str:
    """The line above the talk."""
    when = relative_time(now.since) if now.since else ""
    fresh = " class=tb-fresh" if when == "just now" else ""
    since = f" · <span{fresh}>took over {when}</span>" if when else ""
    name = f"<code>{escape(now.adapter)}</code>"
    line = f'<span class="tb-dot"></span>Speaking: {name}{since}'
    warning = banner(REFUSED, "warn") if now.warning else ""
    return f'<div class="tb-pill" role="status">{line}</div>{warning}'
