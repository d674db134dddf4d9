"""Renders the pieces of HTML that several pages show."""

from typing import Literal

from markupsafe import Markup

from chatbot.pages.html import render

Level = Literal["info", "warn", "error"]

PAGES = (("Chat", "./"), ("Review", "review"), ("Adapters", "adapters"))
"""(name, path) of each page, in the header's order."""


def header(title: str, current: str) -> Markup:
    """Return the bar on top of every page: the bot's name, the pages, the theme's switch."""
    return render("header.html", title=title, current=current, pages=PAGES)


def banner(text: str, level: Level = "info") -> Markup:
    """Return one line that informs or warns people; empty for an empty text."""
    return render("banner.html", text=text, level=level)


def heading(text: str, level: int) -> Markup:
    """Return a heading of level 1 to 6."""
    return render("heading.html", text=text, level=level)


def empty_state(title: str, text: str) -> Markup:
    """Return what a list shows when there is nothing in it."""
    return render("empty_state.html", title=title, text=text)


def welcome(title: str) -> Markup:
    """Return what an empty conversation shows above its example questions."""
    return render("welcome.html", title=title)


def login_prompt(purpose: str, role: str) -> Markup:
    """Return what the login form asks for: a key of `role`, which it takes to do `purpose`."""
    return render("login_prompt.html", purpose=purpose, role=role)
