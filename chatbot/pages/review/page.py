"""Lays out and connects the review page: what people corrected or disliked, one answer at a time.

The queue is on the left, the answer with its conversation on the right; a decision opens the next.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import gradio as gr

from chatbot.pages import fragments
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.listeners import LISTENER, Changes
from chatbot.pages.login_form import LoginForm
from chatbot.pages.review import view
from chatbot.pages.signature import add_signature
from feedback.errors import TalkbackError
from feedback.review import decisions, queue
from feedback.store import Store

if TYPE_CHECKING:
    from chatbot.service import Service

# The next answer begins above the buttons that decided on the last one.
SCROLL_TO_TOP_JS = "() => document.querySelector('#tb-case .tb-error') || window.scrollTo(0, 0)"


class ReviewPage:
    """Holds the review page's components and handles their events."""

    def __init__(self, service: "Service", identities: BrowserIdentities) -> None:
        self._service = service
        self._store: Store = service.store
        self._identities = identities
        self.login_form = LoginForm(service, "reviewer", "review answers")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        gr.HTML(fragments.header(self._service.chat_settings.title, "Review"), padding=False)
        secret = self._identities.storage_secret
        self.reviewer = gr.BrowserState("", storage_key="talkback_reviewer", secret=secret)
        with gr.Column(elem_classes="tb-page"):
            self.login_form.build()
            with gr.Row(visible=False, elem_id="tb-desk") as self.workspace:
                self._add_queue()
                self._add_item()
            self.empty_state = gr.HTML("", visible=False, padding=False)
        self._connect(blocks)

    def _add_queue(self) -> None:
        with gr.Column(scale=1, min_width=260, elem_id="tb-queue"):
            self.count = gr.HTML("", padding=False)
            self.items = gr.Radio(
                [], show_label=False, label="Waiting answers", container=False, elem_id="tb-items"
            )

    def _add_item(self) -> None:
        with gr.Column(scale=3, min_width=320, elem_id="tb-case"):
            self.context = gr.HTML("", padding=False)
            self._add_answers()
            _, self.note, self.name = add_signature("tb-signed", "Note", "Note (optional)")
            self._add_buttons()
            self.error = gr.HTML("", padding=False)

    def _add_answers(self) -> None:
        with gr.Row(elem_id="tb-answers"):
            self.original = gr.HTML("", padding=False, elem_classes="tb-side")
            with gr.Column(elem_classes="tb-side", min_width=280):
                self.proposed = gr.HTML("", padding=False)
                self.answer = gr.Textbox(
                    label="The right answer",
                    show_label=False,
                    container=False,
                    lines=5,
                    max_lines=16,
                    elem_id="tb-answer",
                )

    def _add_buttons(self) -> None:
        with gr.Row(elem_classes="tb-actions"):
            self.approve = gr.Button("Approve", variant="primary", elem_id="tb-approve")
            self.correct = gr.Button("Save my correction", elem_id="tb-correct")
            self.reject = gr.Button("Reject", elem_id="tb-reject")
            self.next = gr.Button("Next", elem_id="tb-next", elem_classes="tb-link")

    def _connect(self, blocks: gr.Blocks) -> None:
        outputs = [
            *self.login_form.components,
            self.reviewer,
            self.workspace,
            self.empty_state,
            self.count,
            self.items,
            self.context,
            self.original,
            self.proposed,
            self.answer,
            self.note,
            self.name,
            self.error,
            self.approve,
        ]
        blocks.load(self._load, [self.reviewer], outputs, **LISTENER)
        self.items.input(self._open_item, [self.items], outputs, **LISTENER)
        self.next.click(self._open_next, [self.items], outputs, **LISTENER)
        given = [self.items, self.answer, self.note, self.name]
        for button, action in (
            (self.approve, "approve"),
            (self.correct, "correct"),
            (self.reject, "reject"),
        ):
            decided = button.click(self._decide(action), given, outputs, **LISTENER)
            decided.success(None, None, None, js=SCROLL_TO_TOP_JS)

    def _load(self, reviewer: object, request: gr.Request) -> Changes:
        caller = self.login_form.caller(request)
        if not self.login_form.admits(caller):
            return self.login_form.show(caller) | {self.workspace: gr.update(visible=False)}
        signature = gr.update(value=str(reviewer or ""), visible=not caller.name)
        return self.login_form.hide(caller) | self._paint(None) | {self.name: signature}

    def _open_item(self, message_id: str, request: gr.Request) -> Changes:
        self.login_form.require(request)
        return self._paint(message_id)

    def _open_next(self, message_id: str | None, request: gr.Request) -> Changes:
        self.login_form.require(request)
        return self._paint(self._following_id(message_id))

    def _decide(self, action: str) -> Callable[..., Changes]:
        """Return the handler of the button that takes `action` on the open answer."""

        def decide(
            message_id: str | None, answer: str, note: str, name: str, request: gr.Request
        ) -> Changes:
            caller = self.login_form.require(request)
            if not message_id:
                return self._paint(None)
            if action == "correct" and not answer.strip():
                return {self.error: view.EMPTY_ANSWER}
            try:
                reviewer = caller.decider(name.strip(), "reviewer")
                stored = self._store_decision(action, message_id, answer, note, reviewer)
            except TalkbackError as error:
                return {self.error: fragments.banner(str(error), "error")}
            gr.Info(view.CONFIRMATIONS[stored], duration=3)
            return self._paint(self._following_id(message_id)) | {self.reviewer: name.strip()}

        return decide

    def _store_decision(
        self, action: str, message_id: str, answer: str, note: str, reviewer: str
    ) -> str:
        """Store the decision and return its action: approving a text that the reviewer has
        changed is a correction."""
        proposal = view.proposed_text(self._store, message_id)
        if action == "approve" and answer.strip() != proposal.strip():
            action = "correct"
        text = {"approve": proposal, "correct": answer, "reject": None}[action]
        decisions.decide(self._store, message_id, reviewer, action, text, note.strip())
        return action

    def _following_id(self, message_id: str | None) -> str | None:
        return view.following_id(queue.list_pending(self._store), message_id)

    def _paint(self, message_id: str | None) -> Changes:
        """Show the queue as it is now, and one of its answers: the named one, else the first."""
        items = queue.list_pending(self._store)
        item = next((i for i in items if i.answer.id == message_id), items[0] if items else None)
        changes: Changes = {
            self.workspace: gr.update(visible=item is not None),
            self.empty_state: gr.update(visible=item is None, value=view.EMPTY_QUEUE),
            self.count: view.queue_count(queue.count_pending(self._store), len(items)),
            self.items: gr.update(
                choices=[(view.item_label(i), i.answer.id) for i in items],
                value=item.answer.id if item else None,
            ),
            self.note: "",
            self.error: "",
        }
        return changes | self._paint_item(item) if item else changes

    def _paint_item(self, item: queue.QueueItem) -> Changes:
        original, proposed = view.side_by_side(item)
        return {
            self.context: view.item_context(item),
            self.original: original,
            self.proposed: proposed,
            self.answer: item.proposed or item.answer.content,
            self.approve: view.APPROVE_LABELS[item.proposed is not None],
        }
