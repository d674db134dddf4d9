"""The adapters page: who speaks and since when, how each was judged, and the operators' levers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatbot.pages import access, lineage, theme
from chatbot.pages.people import People
from feedback.errors import TalkbackError

if TYPE_CHECKING:
    from chatbot.service import Service

Changes = dict[Any, Any]
EVENT = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
FOLLOW_SECONDS = 3.0


class AdaptersPage:
    """The components of the page and what happens when they are used."""

    def __init__(self, service: "Service", people: People) -> None:
        self._service = service
        self._people = people

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        gr.HTML(theme.header(self._service.chat.title, "Adapters"), padding=False)
        secret = self._people.storage_secret
        self.token = gr.BrowserState("", storage_key="talkback_review", secret=secret)
        with gr.Column(elem_classes="tb-page"):
            self.door, self.key, self.enter, self.refusal = theme.entrance(
                "look at adapters and to promote them"
            )
            self.now = gr.HTML("", padding=False, elem_id="tb-now")
            with gr.Row(visible=False, elem_id="tb-adapters") as self.desk:
                with gr.Column(scale=1, min_width=280):
                    gr.HTML("<h3>Adapters</h3>", padding=False)
                    self.list = gr.Radio(
                        [], show_label=False, label="Adapters", container=False, elem_id="tb-list"
                    )
                    self.history = gr.HTML("", padding=False)
                with gr.Column(scale=2, min_width=320):
                    self.card = gr.HTML("", padding=False, elem_id="tb-adapter")
                    self._levers()
                    with gr.Accordion("The whole report", open=False, visible=False) as self.more:
                        self.report = gr.Markdown("", latex_delimiters=[])
        self._connect(blocks)

    def _levers(self) -> None:
        with gr.Row(elem_id="tb-levers"):
            self.reason = gr.Textbox(
                label="Reason", show_label=False, container=False, placeholder="Why?", scale=3,
            )  # fmt: skip
            self.name = gr.Textbox(
                label="Your name", show_label=False, container=False, placeholder="Your name",
                max_length=80, scale=1, min_width=120,
            )  # fmt: skip
        with gr.Row(elem_classes="tb-actions"):
            self.promote = gr.Button(
                "Promote this adapter", variant="primary", elem_id="tb-promote"
            )
            self.rollback = gr.Button("Roll back to the one before", elem_id="tb-rollback")
        self.said = gr.HTML("", padding=False)

    def _connect(self, blocks: gr.Blocks) -> None:
        everything = [
            self.token, self.door, self.refusal, self.now, self.desk, self.list, self.history,
            self.card, self.more, self.report, self.promote, self.said, self.reason,
        ]  # fmt: skip
        blocks.load(self._arrive, [self.token], everything, **EVENT)
        for knock in (self.enter.click, self.key.submit):
            knock(self._enter, [self.key], everything, **EVENT)
        self.list.input(self._open, [self.token, self.list], everything, **EVENT)
        given = [self.token, self.list, self.reason, self.name]
        self.promote.click(self._promote, given, everything, **EVENT)
        self.rollback.click(self._rollback, given, everything, **EVENT)
        follow = gr.Timer(FOLLOW_SECONDS)
        follow.tick(self._follow, [self.token], [self.now, self.history], **EVENT, queue=False)

    def _arrive(self, token: object) -> Changes:
        if not access.allowed(self._service, token):
            return {self.door: gr.update(visible=True)}
        return self._paint(None)

    def _enter(self, key: object) -> Changes:
        if not access.allowed(self._service, key):
            return {self.refusal: theme.notice(str(access.Refused()), "error")}
        return self._paint(None) | {self.token: key}

    def _open(self, token: object, adapter: str) -> Changes:
        access.require(self._service, token)
        return self._paint(adapter)

    def _follow(self, token: object) -> Any:
        """A promotion by the gate shows by itself."""
        if not access.allowed(self._service, token):
            return gr.skip(), gr.skip()
        return self._now(), lineage.history(self._service.registry, self._service.speaking)

    def _promote(self, token: object, adapter: str | None, reason: str, name: str) -> Changes:
        access.require(self._service, token)
        return self._tried(lambda: self._put_in_service(adapter, reason, name), adapter)

    def _rollback(self, token: object, adapter: str | None, reason: str, name: str) -> Changes:
        access.require(self._service, token)
        return self._tried(lambda: self._put_back(reason, name), adapter)

    def _tried(self, act: Callable[[], str], adapter: str | None) -> Changes:
        """Act, then show how things stand, with what went wrong if it did."""
        try:
            said = act()
        except TalkbackError as error:
            return {self.said: theme.notice(str(error), "error")}
        gr.Info(said, duration=4)
        return self._paint(adapter) | {self.reason: ""}

    def _put_in_service(self, adapter: str | None, reason: str, name: str) -> str:
        made = self._service.registry.promote(
            adapter or "",
            "person",
            name.strip() or "operator",
            reason.strip() or "promoted by hand",
        )
        self._service.follow()
        return f"{made.adapter} is promoted."

    def _put_back(self, reason: str, name: str) -> str:
        who, why = name.strip() or "operator", reason.strip() or "rolled back by hand"
        made = self._service.registry.rollback(who, why)
        self._service.follow()
        return f"Rolled back: {made.adapter} is promoted."

    def _paint(self, adapter: str | None) -> Changes:
        """Everything as it is now, opened at one adapter: the named one, else the speaking one."""
        registry, speaking = self._service.registry, self._service.speaking
        choices = lineage.choices(registry, speaking)
        known = [name for _, name in choices]
        chosen = adapter if adapter in known else speaking if speaking in known else None
        report = lineage.full_report(self._service.home, registry, chosen) if chosen else ""
        return {
            self.door: gr.update(visible=False),
            self.desk: gr.update(visible=True),
            self.now: self._now(),
            self.list: gr.update(choices=choices, value=chosen),
            self.history: lineage.history(registry, speaking),
            self.card: lineage.card(registry, chosen) if chosen else "",
            self.more: gr.update(visible=bool(report)),
            self.report: report,
            self.promote: gr.update(interactive=chosen is not None and chosen != speaking),
            self.said: "",
        }

    def _now(self) -> str:
        service = self._service
        return lineage.speaking(service.registry, service.speaking, service.warning)
