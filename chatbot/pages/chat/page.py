"""Connects the chat page: its layout's events to handlers that act and paint the views.

`ChatPage(service, identities).build(blocks)` makes the page. The components are in `layout.py`,
what the handlers do in `actions.py` and `rating.py`, and how a view is shown in `paint.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from markupsafe import Markup

from chatbot.auth.access import Caller
from chatbot.pages.browser_identity import BrowserIdentities, LoginName
from chatbot.pages.chat.actions import ChatActions
from chatbot.pages.chat.layout import ChatLayout
from chatbot.pages.chat.paint import ChatPainter
from chatbot.pages.chat.rating import RatingActions
from chatbot.pages.chat.running import RunningAnswers
from chatbot.pages.chat.status_line import read_status, render_status
from chatbot.pages.chat.view import ChatView, ChatViews, RatedAnswer, message_id_at, page_number
from chatbot.pages.listeners import CONCURRENT, UNQUEUED, Changes
from chatbot.pages.login_form import LoginForm

if TYPE_CHECKING:
    from chatbot.service import Service

# On a phone it covers the chat: it opens by hand, and folds once something in it is picked.
FOLD_SIDEBAR_JS = """() => ({
  open: document.documentElement.dataset.sidebar === "open",
  __type__: "update",
})"""
CHAT_JS = Path(__file__).with_name("chat.js").read_text()
STATUS_REFRESH_SECONDS = 4.0


class ChatPage:
    """Wires the chat page's components to its actions; every handler checks the caller first."""

    def __init__(self, service: "Service", identities: BrowserIdentities) -> None:
        self._service = service
        self._identities = identities
        running = RunningAnswers(service.group_commit)
        self._actions = ChatActions(service, identities, running)
        self._rating = RatingActions(service, identities, ChatViews(service.store, running))
        self.login_form = LoginForm(service, "Chat", "user", "chat")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        secret = self._identities.storage_secret
        self.layout = ChatLayout(self._service, secret, self.login_form)
        painter = ChatPainter(self.layout, self._service.store)
        painter.connect()
        self._paint, self._outputs = painter.paint, painter.outputs
        self._connect_conversation(blocks)
        self._connect_rating()
        self._connect_pair()
        timer = gr.Timer(STATUS_REFRESH_SECONDS)
        timer.tick(self._refresh_status, None, self.layout.status, **UNQUEUED)

    def _connect_conversation(self, blocks: gr.Blocks) -> None:
        layout, outputs = self.layout, self._outputs
        browser = [layout.token, layout.position]
        page = [layout.chat, layout.composer, *self.login_form.components, layout.status]
        blocks.load(self._load, browser, [*outputs, *page], **CONCURRENT)
        blocks.load(None, None, None, js=CHAT_JS)
        blocks.unload(self._forget)
        layout.new.click(self._start_conversation, [layout.token], outputs, **CONCURRENT)
        # The event names what was picked: as a value, only choices that the server made would pass.
        layout.titles.select(self._open_conversation, [layout.token], outputs, **CONCURRENT)
        for event in (layout.new.click, layout.titles.select):
            event(None, None, layout.sidebar, js=FOLD_SIDEBAR_JS)
        layout.chat.undo(self._undo, browser, outputs, **CONCURRENT)
        for button, step in ((layout.earlier, -1), (layout.later, 1)):
            given = [*browser, layout.composer]
            button.click(self._show_version(step), given, outputs, **CONCURRENT)
        layout.composer.stop(self._stop_generation, browser, None, **UNQUEUED)
        layout.composer.submit(self._send, [*browser, layout.composer], outputs, **CONCURRENT)
        layout.chat.example_select(self._send_example, browser, outputs, **CONCURRENT)
        layout.chat.retry(self._retry, browser, outputs, **CONCURRENT)
        layout.chat.edit(self._edit, [*browser, layout.shown], outputs, **CONCURRENT)

    def _connect_rating(self) -> None:
        layout, outputs = self.layout, self._outputs
        browser = [layout.token, layout.position]
        layout.chat.like(self._rate, [*browser, layout.shown], outputs, **CONCURRENT)
        layout.chat.copy(self._record_copy, browser, None, **CONCURRENT)
        given = [*browser, layout.rated, layout.reasons, layout.comment]
        layout.send_reasons.click(self._add_reasons, given, outputs, **CONCURRENT)
        layout.comment.submit(self._add_reasons, given, outputs, **CONCURRENT)
        layout.skip_reasons.click(self._skip_reasons, layout.position, outputs, **CONCURRENT)

    def _connect_pair(self) -> None:
        layout, outputs = self.layout, self._outputs
        given = [layout.token, layout.position, layout.pair]
        layout.skip_choice.click(self._skip_choice, layout.position, outputs, **CONCURRENT)
        layout.prefer_first.click(self._prefer(0), given, outputs, **CONCURRENT)
        layout.prefer_second.click(self._prefer(1), given, outputs, **CONCURRENT)
        layout.tie.click(self._prefer(None), given, outputs, **CONCURRENT)

    def _load(self, token: object, position: object, request: gr.Request) -> Iterator[Changes]:
        caller = self.login_form.caller(request)
        if not self.login_form.admits(caller):
            hidden = gr.update(visible=False)
            layout = self.layout
            yield self.login_form.show(caller) | {layout.chat: hidden, layout.composer: hidden}
            return
        session = str(request.session_hash)
        admitted = self.login_form.hide(caller) | {self.layout.status: self._status(caller)}
        views = self._actions.load(self._identify(token, request), position, session)
        views = ({**view, "opening": True} for view in views)
        yield admitted | self._paint(next(views, ChatView()))
        yield from self._paint_all(views)

    def _paint_all(self, views: Iterable[ChatView]) -> Iterator[Changes]:
        """Paint views as they come, and nothing at the end: Gradio sends a handler's last value
        again, which must not arrive in place of another handler's view."""
        yield from map(self._paint, views)
        yield self._paint({})

    def _forget(self, request: gr.Request) -> None:
        session = str(request.session_hash)
        self._actions.pages.forget(session)
        self._identities.forget_tab(session)

    def _identify(self, token: object, request: gr.Request) -> str:
        """Return what names who uses the page: the login's name, else the browser's token.
        `PermissionDeniedError` or `BadKeyError` for whoever may not."""
        caller = self.login_form.require(request)
        if caller.id and caller.name:
            return LoginName(caller.name)
        return self._identities.token_of_tab(request.session_hash, token)

    def _start_conversation(self, token: object, request: gr.Request) -> Iterator[Changes]:
        identity = self._identify(token, request)
        views = self._actions.start_conversation(identity, str(request.session_hash))
        yield from self._paint_all(views)

    def _open_conversation(
        self, token: object, picked: gr.SelectData, request: gr.Request
    ) -> Iterator[Changes]:
        identity, session = self._identify(token, request), str(request.session_hash)
        views = self._actions.open_conversation(identity, picked.value, session)
        yield from self._paint_all(views)

    def _undo(self, token: object, position: object, request: gr.Request) -> Iterator[Changes]:
        identity = self._identify(token, request)
        views = self._actions.undo(identity, position, str(request.session_hash))
        yield from self._paint_all(views)

    def _show_version(self, step: int) -> Callable[..., Iterator[Changes]]:
        """Return the handler of a button that leads to the version before (-1) or after (1)."""

        def show(
            token: object, position: object, draft: str, request: gr.Request
        ) -> Iterator[Changes]:
            identity, session = self._identify(token, request), str(request.session_hash)
            views = self._actions.show_version(identity, position, step, draft, session)
            yield from self._paint_all(views)

        return show

    def _stop_generation(self, token: object, position: object, request: gr.Request) -> None:
        self._actions.stop_generation(self._identify(token, request), position)

    def _send(
        self, token: object, position: object, text: str, request: gr.Request
    ) -> Iterator[Changes]:
        identity = self._identify(token, request)
        views = self._actions.send(identity, position, text, str(request.session_hash))
        yield from self._paint_all(views)

    def _send_example(
        self, token: object, position: object, selected: gr.SelectData, request: gr.Request
    ) -> Iterator[Changes]:
        yield from self._send(token, position, str(selected.value["text"]), request)

    def _retry(self, token: object, position: object, request: gr.Request) -> Iterator[Changes]:
        identity = self._identify(token, request)
        views = self._actions.retry(identity, position, str(request.session_hash))
        yield from self._paint_all(views)

    def _edit(
        self,
        token: object,
        position: object,
        shown: str,
        edited: gr.EditData,
        request: gr.Request,
    ) -> Iterator[Changes]:
        """Send an edited question anew; an edited answer is a correction, for a reviewer."""
        identity = self._identify(token, request)
        message_id = message_id_at(shown, edited.index)
        if self._rating.is_answer(identity, message_id):
            view = self._rating.correct(identity, position, message_id, edited.value)
            yield from self._paint_all([view])
            return
        session = str(request.session_hash)
        views = self._actions.edit(identity, position, message_id, edited.value, session)
        yield from self._paint_all(views)

    def _rate(
        self,
        token: object,
        position: object,
        shown: str,
        given: gr.LikeData,
        request: gr.Request,
    ) -> Changes:
        identity = self._identify(token, request)
        message_id = message_id_at(shown, given.index)
        return self._paint(self._rating.rate(identity, position, message_id, given.liked))

    def _record_copy(
        self, token: object, position: object, copied: gr.CopyData, request: gr.Request
    ) -> None:
        self._rating.record_copy(self._identify(token, request), position, copied.value)

    def _add_reasons(
        self,
        token: object,
        position: object,
        rated: str,
        reasons: list[str],
        comment: str,
        request: gr.Request,
    ) -> Changes:
        identity, answer = self._identify(token, request), RatedAnswer.from_page(rated)
        return self._paint(self._rating.add_reasons(identity, position, answer, reasons, comment))

    def _skip_reasons(self, position: object) -> Changes:
        return self._paint({"number": page_number(position), "rated": None})

    def _prefer(self, preferred: int | None) -> Callable[..., Changes]:
        """Return the handler of a button that prefers answer 0 or 1, or neither (None)."""

        def prefer(token: object, position: object, pair: str, request: gr.Request) -> Changes:
            identity, answers = self._identify(token, request), tuple(pair.split(maxsplit=2))
            return self._paint(self._rating.choose(identity, position, answers, preferred))

        return prefer

    def _skip_choice(self, position: object) -> Changes:
        return self._paint({"number": page_number(position), "pair": None})

    def _refresh_status(self, request: gr.Request) -> Markup:
        return self._status(self.login_form.require(request))

    def _status(self, caller: Caller) -> Markup:
        return render_status(read_status(self._service), caller.has_role("reviewer"))
