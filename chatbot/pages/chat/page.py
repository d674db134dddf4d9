"""The chat page's layout: a person's conversations at the side, the talk in the middle.

`ChatPage(service, people).build(blocks)` lays it out; the actions are in `talk.py` and `rating.py`,
and `paint` turns the views they give into changes of these components.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatbot.model.base import STARTER
from chatbot.pages import theme
from chatbot.pages.browser_identity import BrowserIdentities, LoginName
from chatbot.pages.chat import status_line, transcript
from chatbot.pages.chat.actions import ChatActions
from chatbot.pages.chat.rating import REASONS_DOWN, REASONS_UP, RatingActions
from chatbot.pages.chat.transcript import Bubble
from chatbot.pages.chat.view import BrowserPosition, ChatView, RatedAnswer
from chatbot.pages.login_form import LoginForm
from chatbot.pages.text import escape_markdown

if TYPE_CHECKING:
    from chatbot.service import Service

Changes = dict[Any, Any]

STARTER_QUESTIONS = (
    "What are your opening hours?",
    "How long does delivery take?",
    "What is your return policy?",
    "Do you sell gift cards?",
)
# On a phone it covers the talk: it opens by hand, and folds once something in it is picked.
FOLD_SIDEBAR = "() => ({open: window.innerWidth > 1000, __type__: 'update'})"
PULSE_SECONDS = 4.0
# Streams wait in the engine's own queue, which knows when it is full: Gradio's must not hold them.
STREAM = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
QUICK = {**STREAM, "trigger_mode": "multiple"}
# What happens often or at once goes past the queue, whose bookkeeping costs more than the work.
UNQUEUED = {**QUICK, "queue": False}


class ChatPage:
    """The components of the page and what happens when they are used."""

    def __init__(self, service: "Service", people: BrowserIdentities) -> None:
        self._service = service
        self._people = people
        self._talk = ChatActions(service, people)
        self._rating = RatingActions(service, people)
        self.login_form = LoginForm(service, "user", "chat")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        gr.HTML(
            theme.header(self._service.chat_settings.title, "Chat"), elem_id="tb-top", padding=False
        )
        self._browser()
        self._sidebar()
        with gr.Column(elem_id="tb-main", scale=1):
            self.status = gr.HTML(
                status_line.render_status(status_line.read_status(self._service)),
                elem_id="tb-status",
                padding=False,
            )
            self.login_form.build()
            self._chatbot()
            self.notice = gr.HTML("", elem_id="tb-notice", padding=False, visible=False)
            self._pair_card()
            self._rated_card()
            self._composer()
        self._connect(blocks)

    def _browser(self) -> None:
        """What the browser keeps: its token and its place; and what only this tab knows."""
        secret = self._people.storage_secret
        self.token = gr.BrowserState(None, storage_key="talkback_person", secret=secret)
        self.place = gr.BrowserState(None, storage_key="talkback_place", secret=secret)
        self.pair = gr.State(None)
        self.rated = gr.State(None)

    def _sidebar(self) -> None:
        with gr.Sidebar(open=False, width=280, elem_id="tb-sidebar") as self.sidebar:
            self.new = gr.Button("New conversation", elem_id="tb-new", size="md")
            gr.HTML('<div class="tb-side-title">Your conversations</div>', padding=False)
            self.titles = gr.Radio(
                [], show_label=False, label="Your conversations", elem_id="tb-conversations"
            )

    def _chatbot(self) -> None:
        chat = self._service.chat_settings
        self.chat = gr.Chatbot(
            [],
            label="Conversation",
            elem_id="tb-chat",
            editable="all",
            buttons=["copy"],
            group_consecutive_messages=False,
            allow_tags=False,
            latex_delimiters=[],
            height="auto",
            scale=1,
            placeholder=theme.welcome(chat.title),
            examples=[{"text": question} for question in _examples(self._service)] or None,
            feedback_options=("Like", "Dislike"),
        )

    def _pair_card(self) -> None:
        with gr.Column(visible=False, elem_id="tb-pair", elem_classes="tb-card") as self.pair_card:
            gr.HTML("<h4>Which answer is better?</h4>", padding=False)
            with gr.Row(equal_height=True):
                with gr.Column(min_width=220):
                    self.first = gr.Markdown(elem_classes="tb-answer", container=False)
                    self.prefer_first = gr.Button("The first", size="sm")
                with gr.Column(min_width=220):
                    self.second = gr.Markdown(elem_classes="tb-answer", container=False)
                    self.prefer_second = gr.Button("The second", size="sm")
            with gr.Row(elem_classes="tb-actions"):
                self.tie = gr.Button("About the same", size="sm")
                self.no_choice = gr.Button("Skip", size="sm", elem_classes="tb-link")

    def _rated_card(self) -> None:
        with gr.Column(
            visible=False, elem_id="tb-rated", elem_classes="tb-card"
        ) as self.rated_card:
            self.rated_title = gr.HTML("", padding=False)
            self.reasons = gr.CheckboxGroup(
                [], show_label=False, label="Reasons", container=False, elem_classes="tb-chips"
            )
            self.comment = gr.Textbox(
                show_label=False,
                label="Comment",
                placeholder="Anything to add?",
                container=False,
                max_length=2000,
            )
            with gr.Row(elem_classes="tb-actions"):
                self.explain = gr.Button("Send", variant="primary", size="sm")
                self.no_reasons = gr.Button("Skip", size="sm", elem_classes="tb-link")

    def _composer(self) -> None:
        self.composer = gr.Textbox(
            show_label=False,
            label="Your message",
            placeholder="Write a message…",
            container=False,
            lines=1,
            max_lines=8,
            autofocus=True,
            submit_btn=True,
            elem_id="tb-composer",
        )
        gr.HTML(
            "Answers can be wrong. Rate them, or edit one with the pencil: "
            "that is how the bot learns.",
            elem_id="tb-hint",
            padding=False,
        )

    def _connect(self, blocks: gr.Blocks) -> None:
        self._connect_talk(blocks)
        self._connect_rating()
        self._connect_choice()
        timer = gr.Timer(PULSE_SECONDS)
        timer.tick(self._pulse, None, self.status, **UNQUEUED)

    def _connect_talk(self, blocks: gr.Blocks) -> None:
        where = [self.token, self.place]
        blocks.load(self._arrive, where, [*self._painted, *self.login_form.parts], **QUICK)
        self.new.click(self._new, [self.token], self._painted, **QUICK)
        self.titles.input(self._open, [self.token, self.titles], self._painted, **QUICK)
        for picked in (blocks.load, self.new.click, self.titles.input):
            picked(None, None, self.sidebar, js=FOLD_SIDEBAR)
        self.chat.undo(self._undo, where, self._painted, **QUICK)
        self.composer.stop(self._stop, None, None, **UNQUEUED)
        self.composer.submit(self._send, [*where, self.composer], self._painted, **STREAM)
        self.chat.example_select(self._example, where, self._painted, **STREAM)
        self.chat.retry(self._retry, where, self._painted, **STREAM)
        self.chat.edit(self._edit, [*where, self.chat], self._painted, **STREAM)

    def _connect_rating(self) -> None:
        self.chat.like(self._thumb, [self.token, self.chat], self._painted, **QUICK)
        self.chat.copy(self._copied, [self.token, self.chat], None, **QUICK)
        parts = [self.rated_card, self.rated_title, self.reasons, self.comment]
        self.rated.change(self._show_rated, self.rated, parts, **QUICK)
        given = [self.token, self.rated, self.reasons, self.comment]
        self.explain.click(self._explain, given, self._painted, **QUICK)
        self.comment.submit(self._explain, given, self._painted, **QUICK)
        self.no_reasons.click(lambda: self.paint({"rated": None}), None, self._painted, **QUICK)

    def _connect_choice(self) -> None:
        parts = [self.pair_card, self.first, self.second]
        self.pair.change(self._show_pair, self.pair, parts, **QUICK)
        pair = [self.token, self.place, self.pair]
        self.no_choice.click(lambda: self.paint({"pair": None}), None, self._painted, **QUICK)
        self.prefer_first.click(self._prefer(0), pair, self._painted, **QUICK)
        self.prefer_second.click(self._prefer(1), pair, self._painted, **QUICK)
        self.tie.click(self._prefer(None), pair, self._painted, **QUICK)

    def _arrive(self, token: object, place: object, request: gr.Request) -> Changes:
        caller = self.login_form.caller(request)
        if not self.login_form.lets(caller):
            hidden = gr.update(visible=False)
            return self.login_form.shut(caller) | {self.chat: hidden, self.composer: hidden}
        view = self._talk.load(self._who(token, request), place)
        return self.login_form.opened(caller) | self.paint(view)

    def _who(self, token: object, request: gr.Request) -> object:
        """Who uses the page, if they may: whoever has logged in by name, else the browser."""
        caller = self.login_form.require(request)
        return LoginName(caller.name) if caller.id and caller.name else token

    def _new(self, token: object, request: gr.Request) -> Changes:
        return self.paint(self._talk.start_conversation(self._who(token, request)))

    def _open(self, token: object, conversation: str, request: gr.Request) -> Changes:
        return self.paint(self._talk.open_conversation(self._who(token, request), conversation))

    def _undo(self, token: object, place: object, request: gr.Request) -> Changes:
        return self.paint(self._talk.undo(self._who(token, request), place))

    def _stop(self, request: gr.Request) -> None:
        self.login_form.require(request)
        self._talk.stop_generation(str(request.session_hash))

    def _send(
        self, token: object, place: object, text: str, request: gr.Request
    ) -> Iterator[Changes]:
        who = self._who(token, request)
        views = self._talk.send(who, place, text, str(request.session_hash))
        yield from map(self.paint, views)

    def _example(
        self, token: object, place: object, picked: gr.SelectData, request: gr.Request
    ) -> Iterator[Changes]:
        text = str(picked.value["text"])
        who = self._who(token, request)
        views = self._talk.send(who, place, text, str(request.session_hash))
        yield from map(self.paint, views)

    def _retry(self, token: object, place: object, request: gr.Request) -> Iterator[Changes]:
        who = self._who(token, request)
        views = self._talk.retry(who, place, str(request.session_hash))
        yield from map(self.paint, views)

    def _edit(
        self,
        token: object,
        place: object,
        history: list[Bubble],
        edited: gr.EditData,
        request: gr.Request,
    ) -> Iterator[Changes]:
        """One's own message is said anew; an edited answer goes to a reviewer."""
        who = self._who(token, request)
        message = transcript.message_id_at(history, edited.index) or ""
        if history[edited.index]["role"] == "assistant":
            yield self.paint(self._rating.correct(who, place, message, edited.value))
            return
        views = self._talk.edit(who, place, message, edited.value, str(request.session_hash))
        yield from map(self.paint, views)

    def _thumb(
        self, token: object, history: list[Bubble], given: gr.LikeData, request: gr.Request
    ) -> Changes:
        who = self._who(token, request)
        message = transcript.message_id_at(history, given.index)
        return self.paint(self._rating.thumb(who, message, given.liked))

    def _copied(
        self, token: object, history: list[Bubble], copied: gr.CopyData, request: gr.Request
    ) -> None:
        who = self._who(token, request)
        self._rating.copied(who, transcript.find_answer_id(history, copied.value))

    def _explain(
        self,
        token: object,
        rated: RatedAnswer | None,
        reasons: list[str],
        comment: str,
        request: gr.Request,
    ) -> Changes:
        who = self._who(token, request)
        return self.paint(self._rating.explain(who, rated, reasons, comment))

    def _prefer(self, which: int | None) -> Callable[..., Changes]:
        def prefer(
            token: object, place: object, pair: tuple[str, str] | None, request: gr.Request
        ) -> Changes:
            who = self._who(token, request)
            return self.paint(self._rating.choose(who, place, pair, which))

        return prefer

    def _pulse(self) -> str:
        """What the line above the talk says by now."""
        return status_line.render_status(status_line.read_status(self._service))

    def paint(self, view: ChatView) -> Changes:
        """The view as changes of components."""
        if "toast" in view:
            gr.Info(view["toast"], duration=3)
        changes: Changes = {}
        for key, value in view.items():
            changes |= self._changes(key, value, view)
        return changes

    def _changes(self, key: str, value: Any, view: ChatView) -> Changes:
        match key:
            case "token":
                # Not {}: Gradio takes no changes at all for a value too few.
                return {self.token: gr.skip() if isinstance(value, LoginName) else value}
            case "place":
                return {self.place: value.keep()}
            case "rows" if "thumbs" in view:
                return {self.chat: gr.update(value=value, feedback_value=view["thumbs"])}
            case "rows":
                return {self.chat: value}  # of an update Gradio makes the chat and its schema anew
            case "draft":
                return {self.composer: gr.update(value=value, **_buttons(view))}
            case "busy":
                return {self.composer: gr.update(**_buttons(view))} if "draft" not in view else {}
            case "notice":
                return {self.notice: gr.update(value=value, visible=bool(value))}
            case "titles":
                return {self.titles: gr.update(choices=value, value=_open_one(view))}
            case "pair":
                return {self.pair: value}
            case "rated":
                return {self.rated: value}
        return {}

    def _show_pair(self, pair: tuple[str, str] | None, request: gr.Request) -> list[Any]:
        """The card of two answers, when others are to be compared, or none."""
        self.login_form.require(request)
        if pair is None:
            return [gr.update(visible=False), "", ""]
        answers = [escape_markdown(self._service.store.message(name).content) for name in pair]
        return [gr.update(visible=True), *answers]

    def _show_rated(self, rated: RatedAnswer | None, request: gr.Request) -> list[Any]:
        """The card that asks why, when another answer got a thumb, or none."""
        self.login_form.require(request)
        if rated is None:
            return [gr.update(visible=False), "", gr.update(value=[]), ""]
        title = "What was good about it?" if rated.up else "What was wrong with it?"
        reasons = gr.update(choices=list(REASONS_UP if rated.up else REASONS_DOWN), value=[])
        return [gr.update(visible=True), f"<h4>{title}</h4>", reasons, ""]

    @property
    def _painted(self) -> list[Any]:
        """All that a view may change. It is little, and the cards follow their states by events of
        their own: at each step of a stream Gradio makes anew what could change and does not."""
        return [
            self.token,
            self.place,
            self.chat,
            self.composer,
            self.notice,
            self.titles,
            self.pair,
            self.rated,
        ]


def _buttons(view: ChatView) -> dict[str, bool]:
    """Send, or stop while an answer streams."""
    if "busy" not in view:
        return {}
    return {"submit_btn": not view["busy"], "stop_btn": view["busy"]}


def _examples(service: "Service") -> list[str]:
    """The operator's example questions; the starter model knows which ones suit it."""
    starter = service.base.name == STARTER
    return service.chat_settings.examples or (list(STARTER_QUESTIONS) if starter else [])


def _open_one(view: ChatView) -> str | None:
    place = view.get("place", BrowserPosition())
    return place.conversation
