"""The adapters page: who speaks and since when, how each was judged, and the operators' levers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatbot.auth.access import Caller
from chatbot.pages import theme
from chatbot.pages.adapters import view
from chatbot.pages.login_form import LoginForm
from feedback.errors import TalkbackError

if TYPE_CHECKING:
    from chatbot.service import Service

Changes = dict[Any, Any]
EVENT = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
FOLLOW_SECONDS = 3.0


class AdaptersPage:
    """The components of the page and what happens when they are used."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self.login_form = LoginForm(service, "reviewer", "look at adapters")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        gr.HTML(theme.header(self._service.chat_settings.title, "Adapters"), padding=False)
        with gr.Column(elem_classes="tb-page"):
            self.login_form.build()
            self.now = gr.HTML("", padding=False, elem_id="tb-now")
            with gr.Row(visible=False, elem_id="tb-adapters") as self.desk:
                with gr.Column(scale=1, min_width=280):
                    gr.HTML("<h3>Adapters</h3>", padding=False)
                    self.list = gr.Radio(
                        [], show_label=False, label="Adapters", container=False, elem_id="tb-list"
                    )
                    self.history = gr.HTML("", padding=False, elem_id="tb-past")
                with gr.Column(scale=2, min_width=320):
                    self.card = gr.HTML("", padding=False, elem_id="tb-adapter")
                    self._levers()
                    with gr.Accordion(
                        "The whole report", open=False, visible=False, elem_id="tb-whole"
                    ) as self.more:
                        self.report = gr.Markdown("", latex_delimiters=[])
        self._connect(blocks)

    def _levers(self) -> None:
        with gr.Row(elem_id="tb-levers") as self.levers:
            self.reason = gr.Textbox(
                label="Reason",
                show_label=False,
                container=False,
                placeholder="Why?",
                scale=3,
            )
            self.name = gr.Textbox(
                label="Your name",
                show_label=False,
                container=False,
                placeholder="Your name",
                max_length=80,
                scale=1,
                min_width=120,
            )
        with gr.Row(elem_classes="tb-actions") as self.buttons:
            self.promote = gr.Button(
                "Promote this adapter", variant="primary", elem_id="tb-promote"
            )
            self.rollback = gr.Button("Roll back to the one before", elem_id="tb-rollback")
        self.said = gr.HTML("", padding=False)

    def _connect(self, blocks: gr.Blocks) -> None:
        everything = [
            *self.login_form.parts,
            self.now,
            self.desk,
            self.list,
            self.history,
            self.card,
            self.more,
            self.report,
            self.promote,
            self.rollback,
            self.said,
            self.reason,
            self.name,
            self.levers,
            self.buttons,
        ]
        blocks.load(self._arrive, None, everything, **EVENT)
        self.list.input(self._open, [self.list], everything, **EVENT)
        given = [self.list, self.reason, self.name]
        self.promote.click(self._promote, given, everything, **EVENT)
        self.rollback.click(self._rollback, given, everything, **EVENT)
        follow = gr.Timer(FOLLOW_SECONDS)
        follow.tick(self._follow, None, [self.now, self.history], **EVENT, queue=False)

    def _arrive(self, request: gr.Request) -> Changes:
        caller = self.login_form.caller(request)
        if not self.login_form.lets(caller):
            return self.login_form.shut(caller)
        operates = gr.update(visible=caller.has_role("operator"))
        levers = {self.levers: operates, self.buttons: operates}
        signed = {self.name: gr.update(visible=not caller.name)}
        return self.login_form.opened(caller) | self._paint(None) | levers | signed

    def _open(self, adapter: str, request: gr.Request) -> Changes:
        self.login_form.require(request)
        return self._paint(adapter)

    def _follow(self, request: gr.Request) -> Any:
        """A promotion by the gate shows by itself."""
        if not self.login_form.lets(self.login_form.caller(request)):
            return gr.skip(), gr.skip()
        return self._now(), view.promotion_history(self._service.registry, self._service.speaking)

    def _promote(self, adapter: str | None, reason: str, name: str, request: gr.Request) -> Changes:
        who = _who(self.login_form.require(request, "operator"), name)
        return self._tried(lambda: self._put_in_service(adapter, reason, who), adapter)

    def _rollback(
        self, adapter: str | None, reason: str, name: str, request: gr.Request
    ) -> Changes:
        who = _who(self.login_form.require(request, "operator"), name)
        return self._tried(lambda: self._put_back(reason, who), adapter)

    def _tried(self, act: Callable[[], str], adapter: str | None) -> Changes:
        """Act, then show how things stand, with what went wrong if it did."""
        try:
            said = act()
        except TalkbackError as error:
            return {self.said: theme.banner(str(error), "error")}
        gr.Info(said, duration=4)
        return self._paint(adapter) | {self.reason: ""}

    def _put_in_service(self, adapter: str | None, reason: str, who: str) -> str:
        why = reason.strip() or "promoted by hand"
        made = self._service.registry.promote(adapter or "", "person", who, why)
        self._service.rollout.follow()
        return f"{made.adapter} is promoted."

    def _put_back(self, reason: str, who: str) -> str:
        made = self._service.registry.rollback(who, reason.strip() or "rolled back by hand")
        self._service.rollout.follow()
        return f"Rolled back: {made.adapter} is promoted."

    def _paint(self, adapter: str | None) -> Changes:
        """Everything as it is now, opened at one adapter: the named one, else the speaking one."""
        registry, speaking = self._service.registry, self._service.speaking
        choices = view.adapter_choices(registry, speaking)
        known = [name for _, name in choices]
        chosen = adapter if adapter in known else speaking if speaking in known else None
        report = view.full_report(self._service.home, registry, chosen) if chosen else ""
        return {
            self.desk: gr.update(visible=True),
            self.now: self._now(),
            self.list: gr.update(choices=choices, value=chosen),
            self.history: view.promotion_history(registry, speaking),
            self.card: view.adapter_card(registry, chosen) if chosen else "",
            self.more: gr.update(visible=bool(report)),
            self.report: report,
            self.promote: gr.update(interactive=chosen is not None and chosen != speaking),
            self.rollback: gr.update(interactive=len(registry.serving_order()) > 1),
            self.said: "",
        }

    def _now(self) -> str:
        service = self._service
        return view.speaking_card(service.registry, service.speaking, service.warning)


def _who(caller: Caller, name: str) -> str:
    """Whose decision it is: the key's owner, else whoever signs."""
    return caller.name or name.strip() or "operator"
