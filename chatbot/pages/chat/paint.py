"""Turns a `ChatView` into changes of the chat page's components.

A view travels as one text into one hidden component, and `paint.js` paints it in the browser. Only
there is it known what the page shows by then, so only there can a late view be dropped; and what
the page has need not be sent again.
"""

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from chatbot.pages import fragments
from chatbot.pages.browser_identity import LoginName
from chatbot.pages.chat.layout import ChatLayout
from chatbot.pages.chat.view import REASONS_DOWN, REASONS_UP, ChatView, RatedAnswer, Versions
from chatbot.pages.listeners import Changes
from chatbot.pages.text import escape_markdown
from feedback.store import Store

PAINT_JS = Path(__file__).with_name("paint.js").read_text()
TEXT_MARK = "\x1e"
"""Comes before an answer's text; before it is the thought. So what arrives only grows."""
READ_BY_PAINT_JS = ("number", "opening", "after", "bubbles", "thumb", "draft")
"""Parts of a view that `paint.js` reads itself."""


class ChatPainter:
    """Paints views on one layout."""

    def __init__(self, layout: ChatLayout, store: Store) -> None:
        self._layout, self._store = layout, store
        self._serial = itertools.count(time.time_ns() // 1_000_000)
        self._painted: list[Any] = [
            layout.chat,
            layout.shown,
            layout.composer,
            layout.token,
            layout.position,
            layout.banner,
            layout.titles,
            *(layout.versions, layout.earlier, layout.version, layout.later),
            *(layout.pair, layout.pair_card, layout.first, layout.second),
            *(layout.rated, layout.rated_card, layout.rated_title),
            *(layout.reasons, layout.comment),
        ]
        """What `paint.js` paints. It knows the first three by their places."""

    @property
    def outputs(self) -> list[Any]:
        """List the components that a handler changes to have a view painted."""
        return [self._layout.view, self._layout.text]

    def connect(self) -> None:
        """Have each view painted when it arrives."""
        layout = self._layout
        arrivals = [layout.view.change, layout.text.change]
        gr.on(
            arrivals,
            None,
            [layout.view, layout.text],
            self._painted,
            js=PAINT_JS,
            show_progress="hidden",
        )

    def paint(self, view: ChatView) -> Changes:
        """Return the changes that have the view painted, and show its toast; none for an empty
        one."""
        if "toast" in view:
            gr.Info(view["toast"], duration=3)
        if "text" in view:
            thought = escape_markdown(view["thought"]).replace(TEXT_MARK, "")
            text = f"{TEXT_MARK}{escape_markdown(view['text'])}" if view["text"] else ""
            return {self._layout.text: f"{view['number']} {thought}{text}"}
        if not view:
            return {self._layout.view: gr.skip()}
        return {self._layout.view: json.dumps(self._envelope(view))}

    def _envelope(self, view: ChatView) -> dict[str, Any]:
        """Return what `paint.js` reads; an index counts in `_painted`."""
        changes: Changes = {}
        for key, value in view.items():
            changes |= self._changes(key, value, view)
        indexed = {self._painted.index(part): change for part, change in changes.items()}
        read = {key: value for key, value in view.items() if key in READ_BY_PAINT_JS}
        shows = [
            part.elem_id
            for part, change in changes.items()
            if isinstance(change, dict) and change.get("visible")
        ]
        return {"serial": next(self._serial), "changes": indexed, "shows": shows, **read}

    def _changes(self, key: str, value: Any, view: ChatView) -> Changes:
        layout = self._layout
        match key:
            case "token" if not isinstance(value, LoginName):
                return {layout.token: value}
            case "position":
                titles = {"choices": view["titles"]} if "titles" in view else {}
                titles_change = gr.update(value=value.conversation, **titles)
                return {layout.position: value.to_storage(), layout.titles: titles_change}
            case "draft":
                return {layout.composer: gr.update(value=value, **_composer_buttons(view))}
            case "busy" if "draft" not in view:
                return {layout.composer: gr.update(**_composer_buttons(view))}
            case "banner":
                return {layout.banner: gr.update(value=value, visible=bool(value))}
            case "versions":
                return self._versions(value, view)
            case "pair":
                return self._pair_card(value)
            case "rated":
                return self._rated_card(value)
        return {}

    def _versions(self, versions: Versions, view: ChatView) -> Changes:
        """Return the changes of what steps through versions; hidden while an answer is under way,
        and where there is but one."""
        layout, count = self._layout, len(versions.leaves)
        return {
            layout.versions: gr.update(visible=count > 1 and not view.get("busy")),
            layout.earlier: gr.update(interactive=versions.shown > 0),
            layout.version: f"Version {versions.shown + 1} of {count}",
            layout.later: gr.update(interactive=versions.shown < count - 1),
        }

    def _pair_card(self, pair: Sequence[str] | None) -> Changes:
        """Return the changes of the card with two answers to compare; hidden for None."""
        layout = self._layout
        texts = [escape_markdown(self._store.message(answer).content) for answer in pair or ()]
        first, second = texts or ("", "")
        return {
            layout.pair: " ".join(pair or ()),
            layout.pair_card: gr.update(visible=bool(pair)),
            layout.first: first,
            layout.second: second,
        }

    def _rated_card(self, rated: RatedAnswer | None) -> Changes:
        """Return the changes of the card that asks for reasons; hidden for None."""
        layout = self._layout
        title = "What was good about it?" if rated and rated.up else "What was wrong with it?"
        offered = REASONS_UP if rated and rated.up else REASONS_DOWN
        return {
            layout.rated: rated.to_page() if rated else "",
            layout.rated_card: gr.update(visible=rated is not None),
            layout.rated_title: fragments.heading(title, 2),
            layout.reasons: gr.update(choices=[(one, one) for one in offered], value=[]),
            layout.comment: "",
        }


def _composer_buttons(view: ChatView) -> dict[str, bool]:
    """Return which button the composer has: "send", or "stop" while an answer is under way."""
    if "busy" not in view:
        return {}
    return {"submit_btn": not view["busy"], "stop_btn": view["busy"]}
