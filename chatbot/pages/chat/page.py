"""Connects the chat page: its layout's events to handlers that act and paint the views.

`ChatPage(service, identities).build(blocks)` makes the page. The components are in `layout.py`,
what the handlers do in `actions.py` and `rating.py`, and how a view is shown in `paint.py`.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from chatbot.pages.browser_identity import BrowserIdentities, LoginName
from chatbot.pages.chat import transcript
from chatbot.pages.chat.actions import ChatActions
from chatbot.pages.chat.layout import ChatLayout
from chatbot.pages.chat.paint import ChatPainter, paint_pair_card, paint_rated_card
from chatbot.pages.chat.rating import RatingActions
from chatbot.pages.chat.status_line import read_status, render_status
from chatbot.pages.chat.transcript import Bubble
from chatbot.pages.chat.view import RatedAnswer
from chatbot.pages.listeners import CONCURRENT, LISTENER, UNQUEUED, Changes
from chatbot.pages.login_form import LoginForm

if TYPE_CHECKING:
    from chatbot.service import Service

# On a phone it covers the chat: it opens by hand, and folds once something in it is picked.
FOLD_SIDEBAR_JS = "() => ({open: window.innerWidth > 1000, __type__: 'update'})"
STATUS_REFRESH_SECONDS = 4.0


class ChatPage:
    """Wires the chat page's components to its actions; every handler checks the caller first."""

    def __init__(self, service: "Service", identities: BrowserIdentities) -> None:
        self._service = service
        self._identities = identities
        self._actions = ChatActions(service, identities)
        self._rating = RatingActions(service, identities)
        self.login_form = LoginForm(service, "user", "chat")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        secret = self._identities.storage_secret
        self.layout = ChatLayout(self._service, secret, self.login_form)
        painter = ChatPainter(self.layout)
        self._paint, self._outputs = painter.paint, painter.outputs
        self._connect_conversation(blocks)
        self._connect_rating()
        self._connect_pair()
        timer = gr.Timer(STATUS_REFRESH_SECONDS)
        timer.tick(self._refresh_status, None, self.layout.status, **UNQUEUED)

    def _connect_conversation(self, blocks: gr.Blocks) -> None:
        layout, outputs = self.layout, self._outputs
        browser = [layout.token, layout.position]
        blocks.load(self._load, browser, [*outputs, *self.login_form.components], **CONCURRENT)
        layout.new.click(self._start_conversation, [layout.token], outputs, **CONCURRENT)
        picked = [layout.token, layout.titles]
        layout.titles.input(self._open_conversation, picked, outputs, **CONCURRENT)
        for event in (blocks.load, layout.new.click, layout.titles.input):
            event(None, None, layout.sidebar, js=FOLD_SIDEBAR_JS)
        layout.chat.undo(self._undo, browser, outputs, **CONCURRENT)
        layout.composer.stop(self._stop_generation, None, None, **UNQUEUED)
        layout.composer.submit(self._send, [*browser, layout.composer], outputs, **LISTENER)
        layout.chat.example_select(self._send_example, browser, outputs, **LISTENER)
        layout.chat.retry(self._retry, browser, outputs, **LISTENER)
        layout.chat.edit(self._edit, [*browser, layout.chat], outputs, **LISTENER)

    def _connect_rating(self) -> None:
        layout, outputs = self.layout, self._outputs
        layout.chat.like(self._rate, [layout.token, layout.chat], outputs, **CONCURRENT)
        layout.chat.copy(self._record_copy, [layout.token, layout.chat], None, **CONCURRENT)
        card = [layout.rated_card, layout.rated_title, layout.reasons, layout.comment]
        layout.rated.change(self._show_rated_card, layout.rated, card, **CONCURRENT)
        given = [layout.token, layout.rated, layout.reasons, layout.comment]
        layout.send_reasons.click(self._add_reasons, given, outputs, **CONCURRENT)
        layout.comment.submit(self._add_reasons, given, outputs, **CONCURRENT)
        layout.skip_reasons.click(self._skip_reasons, None, outputs, **CONCURRENT)

    def _connect_pair(self) -> None:
        layout, outputs = self.layout, self._outputs
        card = [layout.pair_card, layout.first, layout.second]
        layout.pair.change(self._show_pair_card, layout.pair, card, **CONCURRENT)
        given = [layout.token, layout.position, layout.pair]
        layout.skip_choice.click(self._skip_choice, None, outputs, **CONCURRENT)
        layout.prefer_first.click(self._prefer(0), given, outputs, **CONCURRENT)
        layout.prefer_second.click(self._prefer(1), given, outputs, **CONCURRENT)
        layout.tie.click(self._prefer(None), given, outputs, **CONCURRENT)

    def _load(self, token: object, position: object, request: gr.Request) -> Changes:
        caller = self.login_form.caller(request)
        if not self.login_form.admits(caller):
            hidden = gr.update(visible=False)
            layout = self.layout
            return self.login_form.show(caller) | {layout.chat: hidden, layout.composer: hidden}
        view = self._actions.load(self._identify(token, request), position)
        return self.login_form.hide(caller) | self._paint(view)

    def _identify(self, token: object, request: gr.Request) -> object:
        """Return what names who uses the page: the login's name, else the browser's token.
        `PermissionDeniedError` or `BadKeyError` for whoever may not."""
        caller = self.login_form.require(request)
        return LoginName(caller.name) if caller.id and caller.name else token

    def _start_conversation(self, token: object, request: gr.Request) -> Changes:
        return self._paint(self._actions.start_conversation(self._identify(token, request)))

    def _open_conversation(
        self, token: object, conversation_id: str, request: gr.Request
    ) -> Changes:
        identity = self._identify(token, request)
        return self._paint(self._actions.open_conversation(identity, conversation_id))

    def _undo(self, token: object, position: object, request: gr.Request) -> Changes:
        return self._paint(self._actions.undo(self._identify(token, request), position))

    def _stop_generation(self, request: gr.Request) -> None:
        self.login_form.require(request)
        self._actions.stop_generation(str(request.session_hash))

    def _send(
        self, token: object, position: object, text: str, request: gr.Request
    ) -> Iterator[Changes]:
        identity = self._identify(token, request)
        views = self._actions.send(identity, position, text, str(request.session_hash))
        yield from map(self._paint, views)

    def _send_example(
        self, token: object, position: object, selected: gr.SelectData, request: gr.Request
    ) -> Iterator[Changes]:
        yield from self._send(token, position, str(selected.value["text"]), request)

    def _retry(self, token: object, position: object, request: gr.Request) -> Iterator[Changes]:
        identity = self._identify(token, request)
        views = self._actions.retry(identity, position, str(request.session_hash))
        yield from map(self._paint, views)

    def _edit(
        self,
        token: object,
        position: object,
        history: list[Bubble],
        edited: gr.EditData,
        request: gr.Request,
    ) -> Iterator[Changes]:
        """Send an edited question anew; an edited answer is a correction, for a reviewer."""
        identity = self._identify(token, request)
        message_id = transcript.message_id_at(history, edited.index) or ""
        if message_id and history[edited.index]["role"] == "assistant":
            yield self._paint(self._rating.correct(identity, position, message_id, edited.value))
            return
        session = str(request.session_hash)
        views = self._actions.edit(identity, position, message_id, edited.value, session)
        yield from map(self._paint, views)

    def _rate(
        self, token: object, history: list[Bubble], given: gr.LikeData, request: gr.Request
    ) -> Changes:
        identity = self._identify(token, request)
        message_id = transcript.message_id_at(history, given.index)
        return self._paint(self._rating.rate(identity, message_id, given.liked))

    def _record_copy(
        self, token: object, history: list[Bubble], copied: gr.CopyData, request: gr.Request
    ) -> None:
        identity = self._identify(token, request)
        self._rating.record_copy(identity, transcript.find_answer_id(history, copied.value))

    def _add_reasons(
        self,
        token: object,
        rated: RatedAnswer | None,
        reasons: list[str],
        comment: str,
        request: gr.Request,
    ) -> Changes:
        identity = self._identify(token, request)
        return self._paint(self._rating.add_reasons(identity, rated, reasons, comment))

    def _skip_reasons(self) -> Changes:
        return self._paint({"rated": None})

    def _prefer(self, preferred: int | None) -> Callable[..., Changes]:
        """Return the handler of a button that prefers answer 0 or 1, or neither (None)."""

        def prefer(
            token: object, position: object, pair: tuple[str, str] | None, request: gr.Request
        ) -> Changes:
            identity = self._identify(token, request)
            return self._paint(self._rating.choose(identity, position, pair, preferred))

        return prefer

    def _skip_choice(self) -> Changes:
        return self._paint({"pair": None})

    def _refresh_status(self) -> Markup:
        return render_status(read_status(self._service))

    def _show_pair_card(self, pair: tuple[str, str] | None, request: gr.Request) -> list[Any]:
        self.login_form.require(request)
        store = self._service.store
        return paint_pair_card(pair and [store.message(answer).content for answer in pair])

    def _show_rated_card(self, rated: RatedAnswer | None, request: gr.Request) -> list[Any]:
        self.login_form.require(request)
        return paint_rated_card(rated)
