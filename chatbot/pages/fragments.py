"""Renders the pieces of HTML that several pages show."""

from typing import Literal

from markupsafe import Markup

from chatbot.auth.access import Caller
from chatbot.auth.api_keys import Role
from chatbot.pages.html import render

Level = Literal["info", "warn", "error"]

PAGES: tuple[tuple[str, str, Role], ...] = (
    ("Chat", "./", "user"),
    ("Review", "review", "reviewer"),
    ("Adapters", "adapters", "reviewer"),
)
"""(name, path, who may open it) of each page, in the header's order."""


NOBODY = Caller(None)
"""Who has not yet been asked for a key."""


def header(title: str, current: str, caller: Caller = NOBODY) -> Markup:
    """Return the bar on top of every page: the bot's name, the pages that `caller` may open where
    there is more than one, the theme's switch."""
    pages = [(name, path) for name, path, role in PAGES if name == current or caller.has_role(role)]
    return render(
        "header.html", title=title, current=current, pages=pages if len(pages) > 1 else []
    )


def banner(text: str, level: Level = "info") -> Markup:
    """Return one line that informs or warns people; empty for an empty text."""
    return render("banner.html", text=text, level=level)


def heading(text: str, level: int) -> Markup:
    """Return a heading of level 1 to 6."""
    return render("heading.html", text=text, level=level)


def empty_state(title: str, text: str) -> Markup:
    """Return what a list shows when there is nothing in it."""
    return render("empty_state.html", title=title, text=text)


def welcome(title: str, invitation: str) -> Markup:
    """Return what an empty conversation shows above its example questions."""
    return render("welcome.html", title=title, invitation=invitation)


def login_prompt(purpose: str, role: str) -> Markup:
    """Return what the login form asks for: a key of `role`, which it takes to do `purpose`."""
    return render("login_prompt.html", purpose=purpose, role=role)
