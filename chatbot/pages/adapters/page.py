"""Lays out and connects the adapters page: which adapter speaks and since when, how each was
judged, and the operators' controls."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from chatbot.pages import fragments
from chatbot.pages.adapters import view
from chatbot.pages.listeners import LISTENER, Changes
from chatbot.pages.login_form import LoginForm
from chatbot.pages.signature import add_signature
from chatbot.registry import PromotionConflictError
from feedback.cycle_lock import read_running_cycle
from feedback.errors import TalkbackError

if TYPE_CHECKING:
    from chatbot.service import Service

REFRESH_SECONDS = 3.0


class AdaptersPage:
    """Holds the adapters page's components and handles their events."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self.login_form = LoginForm(service, "Adapters", "reviewer", "look at adapters")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        self.login_form.build_header()
        with gr.Column(elem_classes="tb-page"):
            self.login_form.build()
            self.in_service = gr.HTML("", padding=False, elem_id="tb-now")
            with gr.Row(visible=False, elem_id="tb-adapters") as self.workspace:
                with gr.Column(scale=1, min_width=280):
                    self._add_list()
                with gr.Column(scale=2, min_width=320):
                    self.card = gr.HTML("", padding=False, elem_id="tb-adapter")
                    self._add_controls()
                    self._add_report()
        self._connect(blocks)

    def _add_list(self) -> None:
        gr.HTML(fragments.heading("Adapters", 2), padding=False)
        self.list = gr.Radio(
            [], show_label=False, label="Adapters", container=False, elem_id="tb-list"
        )
        self.history = gr.HTML("", padding=False, elem_id="tb-past")

    def _add_controls(self) -> None:
        """Add what promotes and rolls back; operators alone see it."""
        self.signature, self.reason, self.name = add_signature("tb-levers", "Reason", "Why?")
        self.seen = gr.State("")
        with gr.Row(elem_classes="tb-actions") as self.buttons:
            self.confirm = gr.Checkbox(
                label="The gate did not find it better. It shall speak all the same",
                container=False,
                visible=False,
                elem_id="tb-confirm",
            )
            self.promote = gr.Button(
                "Promote this adapter", variant="primary", elem_id="tb-promote"
            )
            self.rollback = gr.Button("Roll back to the one before", elem_id="tb-rollback")
        self.error = gr.HTML("", padding=False)

    def _add_report(self) -> None:
        with gr.Accordion(
            "The whole report", open=False, visible=False, elem_id="tb-whole"
        ) as self.report_section:
            self.report = gr.Markdown("", latex_delimiters=[])

    def _connect(self, blocks: gr.Blocks) -> None:
        outputs = [
            *self.login_form.components,
            self.in_service,
            self.workspace,
            self.list,
            self.history,
            self.card,
            self.report_section,
            self.report,
            self.confirm,
            self.promote,
            self.rollback,
            self.seen,
            self.error,
            self.reason,
            self.name,
            self.signature,
            self.buttons,
        ]
        blocks.load(self._load, None, outputs, **LISTENER)
        self.list.input(self._open_adapter, [self.list], outputs, **LISTENER)
        given = [self.list, self.reason, self.name, self.seen]
        self.promote.click(self._promote, [*given, self.confirm], outputs, **LISTENER)
        self.rollback.click(self._roll_back, given, outputs, **LISTENER)
        timer = gr.Timer(REFRESH_SECONDS)
        timer.tick(self._refresh, None, [self.in_service, self.history], **LISTENER, queue=False)

    def _load(self, request: gr.Request) -> Changes:
        caller = self.login_form.caller(request)
        if not self.login_form.admits(caller):
            return self.login_form.show(caller)
        operator = gr.update(visible=caller.has_role("operator"))
        controls = {self.signature: operator, self.buttons: operator}
        name = {self.name: gr.update(visible=not caller.name)}
        return self.login_form.hide(caller) | self._paint(None) | controls | name

    def _open_adapter(self, adapter: str, request: gr.Request) -> Changes:
        self.login_form.require(request)
        return self._paint(adapter)

    def _refresh(self, request: gr.Request) -> Any:
        """Show a promotion that was made elsewhere, by the gate or on another page, and how the
        running cycle goes."""
        if not self.login_form.admits(self.login_form.caller(request)):
            return gr.skip(), gr.skip()
        return self._in_service(), self._history()

    def _promote(
        self,
        adapter: str | None,
        reason: str,
        name: str,
        seen: str,
        confirm: bool,
        request: gr.Request,
    ) -> Changes:
        caller = self.login_form.require(request, "operator")
        who = caller.decider(name.strip(), "operator")
        signed = bool((caller.name or name.strip()) and reason.strip())

        def promote() -> str:
            why = reason.strip() or "promoted by hand"
            made = self._service.registry.promote(
                adapter or "", "person", who, why, seen=seen, confirmed=confirm and signed
            )
            return f"{made.adapter} is promoted."

        return self._apply(promote, adapter)

    def _roll_back(
        self, adapter: str | None, reason: str, name: str, seen: str, request: gr.Request
    ) -> Changes:
        caller = self.login_form.require(request, "operator")
        who = caller.decider(name.strip(), "operator")

        def roll_back() -> str:
            why = reason.strip() or "rolled back by hand"
            made = self._service.registry.rollback(who, why, seen=seen)
            return f"Rolled back: {made.adapter} is promoted."

        return self._apply(roll_back, adapter)

    def _apply(self, change: Callable[[], str], adapter: str | None) -> Changes:
        """Make the change and put it in service; show the page anew, or only the error."""
        try:
            confirmation = change()
            self._service.rollout.follow()
        except PromotionConflictError as error:
            return self._paint(adapter) | {self.error: fragments.banner(str(error), "error")}
        except TalkbackError as error:
            return {self.error: fragments.banner(str(error), "error")}
        gr.Info(confirmation, duration=4)
        return self._paint(adapter) | {self.reason: ""}

    def _paint(self, adapter: str | None) -> Changes:
        """Show everything as it is now, and one adapter: the named one, else the speaking one."""
        registry, speaking = self._service.registry, self._service.speaking
        choices = view.adapter_choices(registry, speaking)
        known = [adapter_id for _, adapter_id in choices]
        chosen = adapter if adapter in known else speaking if speaking in known else None
        newest = registry.promotion()
        objection = registry.objection(chosen) if chosen and chosen != speaking else ""
        report = view.full_report(self._service.home, registry, chosen) if chosen else ""
        promotable = bool(chosen) and chosen != speaking and registry.same_base(str(chosen))
        return {
            self.workspace: gr.update(visible=True),
            self.in_service: self._in_service(),
            self.list: gr.update(choices=choices, value=chosen),
            self.history: self._history(),
            self.card: view.adapter_card(registry, chosen) if chosen else "",
            self.report_section: gr.update(visible=bool(report)),
            self.report: report,
            self.confirm: gr.update(visible=bool(objection), value=False),
            self.promote: gr.update(interactive=promotable),
            self.rollback: gr.update(interactive=len(registry.serving_order()) > 1),
            self.seen: newest.id if newest else "",
            self.error: "",
        }

    def _in_service(self) -> Markup:
        service = self._service
        card = view.adapter_in_service(service.registry, service.speaking, service.warning)
        cycle = read_running_cycle(service.home)
        return card + view.running_cycle(cycle) if cycle else card

    def _history(self) -> Markup:
        return view.promotion_history(self._service.registry, self._service.speaking)
