"""Which adapter is speaking, since when, and what keeps it from speaking, in one line of HTML."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from chatbot.pages.words import ago

if TYPE_CHECKING:
    from chatbot.service import Service


@dataclass(frozen=True)
class Standing:
    """How things stand; no adapter while the model loads, a warning when a new one was refused."""

    adapter: str | None
    since: str | None
    warning: str


def look(service: "Service") -> Standing:
    """How things stand with this service now."""
    adapter = service.speaking
    promoted = [row for row in service.registry.history() if row.adapter == adapter]
    since = promoted[0].created_at if promoted else None
    return Standing(adapter, since, service.warning or "")


def pill(now: Standing) -> str:
    """The line above the talk."""
    if now.adapter is None:
        line = '<span class="tb-dot tb-waiting"></span>The model is waking up…'
    else:
        name = f"<code>{escape(now.adapter)}</code>"
        since = f" · {escape(ago(now.since))}" if now.since else ""
        line = f'<span class="tb-dot"></span>Speaking: {name}{since}'
    html = f'<div class="tb-pill" role="status">{line}</div>'
    return html + _warning(now.warning)


def _warning(text: str) -> str:
    return f'<div class="tb-notice tb-warn" role="status">{escape(text)}</div>' if text else ""
