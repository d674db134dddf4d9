"""Turns a `ChatView` into changes of the chat page's components."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from chatbot.pages import fragments
from chatbot.pages.browser_identity import LoginName
from chatbot.pages.chat.layout import ChatLayout
from chatbot.pages.chat.rating import REASONS_DOWN, REASONS_UP
from chatbot.pages.chat.view import BrowserPosition, ChatView, RatedAnswer
from chatbot.pages.listeners import Changes
from chatbot.pages.text import escape_markdown


class ChatPainter:
    """Paints views on one layout."""

    def __init__(self, layout: ChatLayout) -> None:
        self._layout = layout

    @property
    def outputs(self) -> list[Any]:
        """List all components that a view may change.

        It is short, and the cards follow their states by events of their own, because at each step
        of a stream Gradio makes anew what could change and does not.
        """
        layout = self._layout
        return [
            layout.token,
            layout.position,
            layout.chat,
            layout.composer,
            layout.banner,
            layout.titles,
            layout.pair,
            layout.rated,
        ]

    def paint(self, view: ChatView) -> Changes:
        """Return the view as changes, and show its toast."""
        if "toast" in view:
            gr.Info(view["toast"], duration=3)
        changes: Changes = {}
        for key, value in view.items():
            changes |= self._changes(key, value, view)
        return changes

    def _changes(self, key: str, value: Any, view: ChatView) -> Changes:
        layout = self._layout
        match key:
            case "token":
                # Not {}: Gradio takes no changes at all for a value too few.
                return {layout.token: gr.skip() if isinstance(value, LoginName) else value}
            case "position":
                return {layout.position: value.to_storage()}
            case "bubbles" if "thumbs" in view:
                return {layout.chat: gr.update(value=value, feedback_value=view["thumbs"])}
            case "bubbles":
                # The value alone: of an update Gradio makes the chat and its schema anew.
                return {layout.chat: value}
            case "draft":
                return {layout.composer: gr.update(value=value, **_composer_buttons(view))}
            case "busy" if "draft" not in view:
                return {layout.composer: gr.update(**_composer_buttons(view))}
            case "banner":
                return {layout.banner: gr.update(value=value, visible=bool(value))}
            case "titles":
                selected = view.get("position", BrowserPosition()).conversation
                return {layout.titles: gr.update(choices=value, value=selected)}
            case "pair":
                return {layout.pair: value}
            case "rated":
                return {layout.rated: value}
        return {}


def paint_pair_card(answers: Sequence[str] | None) -> list[Any]:
    """Return the updates of the card, first and second answer: two texts to compare, or None."""
    if answers is None:
        return [gr.update(visible=False), "", ""]
    first, second = (escape_markdown(answer) for answer in answers)
    return [gr.update(visible=True), first, second]


def paint_rated_card(rated: RatedAnswer | None) -> list[Any]:
    """Return the updates of the card, its title, reasons and comment; hidden for None."""
    if rated is None:
        return [gr.update(visible=False), "", gr.update(value=[]), ""]
    title = "What was good about it?" if rated.up else "What was wrong with it?"
    reasons = gr.update(choices=list(REASONS_UP if rated.up else REASONS_DOWN), value=[])
    return [gr.update(visible=True), fragments.heading(title, 4), reasons, ""]


def _composer_buttons(view: ChatView) -> dict[str, bool]:
    """Return which button the composer has: "send", or "stop" while an answer is under way."""
    if "busy" not in view:
        return {}
    return {"submit_btn": not view["busy"], "stop_btn": view["busy"]}
