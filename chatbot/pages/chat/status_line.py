"""Renders the line above the conversation: which adapter speaks, since when, and whether a newer
one was refused."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from chatbot.pages.html import render
from chatbot.pages.text import relative_time

if TYPE_CHECKING:
    from chatbot.service import Service

# What is wrong with its files, and where they are, is for operators: the adapters page says it.
REFUSED = "A newer version was refused. This one goes on speaking."


@dataclass(frozen=True)
class SpeakerStatus:
    """Holds the adapter in service, since when (ISO time, None before any promotion), and why a
    promoted adapter does not speak (empty when it does)."""

    adapter: str
    since: str | None
    warning: str
    updated: bool = False
    """Whether anything has been promoted since the first start."""


def read_status(service: "Service") -> SpeakerStatus:
    """Return the service's status now."""
    promotion = service.registry.promotion()
    speaks = promotion is not None and promotion.adapter == service.speaking
    since = promotion.created_at if promotion and speaks else None
    updated = promotion is not None and promotion.by != "start"
    return SpeakerStatus(service.speaking, since, service.warning, updated)


def render_status(status: SpeakerStatus, with_adapter: bool) -> Markup:
    """Return the line above the conversation as HTML; adapters' names are for those who judge
    them, everybody else reads how new the bot's knowledge is."""
    since = relative_time(status.since) if status.since else ""
    return render(
        "status_line.html",
        adapter=status.adapter if with_adapter else "",
        since=since if with_adapter or status.updated else "",
        warning=REFUSED if status.warning else "",
    )
