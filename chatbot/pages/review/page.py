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
from feedback.review.conflicts import DecisionConflictError
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
        self.login_form = LoginForm(service, "Review", "reviewer", "review answers")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        self.login_form.build_header()
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
            self.seen = gr.State("")
            _, self.note, self.name = add_signature("tb-signed", "Note", "Note (optional)")
            self._add_buttons()
            self.error = gr.HTML("", padding=False)

    def _add_answers(self) -> None:
        with gr.Row(elem_id="tb-answers"):
            self.original = gr.HTML("", padding=False, elem_classes="tb-side")
            with gr.Column(elem_classes="tb-side", min_width=280):
                self.proposed = gr.HTML("", padding=False)
                self.proposals = gr.Radio(
                    [], label="Start from the text of", visible=False, elem_id="tb-proposals"
                )
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
            self.proposals,
            self.answer,
            self.seen,
            self.note,
            self.name,
            self.error,
            self.approve,
            self.correct,
        ]
        blocks.load(self._load, [self.reviewer], outputs, **LISTENER)
        self.items.input(self._open_item, [self.items], outputs, **LISTENER)
        self.next.click(self._open_next, [self.items], outputs, **LISTENER)
        self.proposals.input(None, self.proposals, self.answer, js="(text) => text", **LISTENER)
        given = [self.items, self.answer, self.note, self.name, self.seen]
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
        return self._paint(message_id, following=True)

    def _decide(self, action: str) -> Callable[..., Changes]:
        """Return the handler of the button that takes `action` on the open answer."""

        def decide(
            message_id: str | None,
            answer: str,
            note: str,
            name: str,
            seen: str,
            request: gr.Request,
        ) -> Changes:
            caller = self.login_form.require(request)
            if not message_id:
                return self._paint(None)
            try:
                reviewer = caller.decider(name.strip(), "reviewer")
                item = queue.find_item(self._store, message_id)
                stored, text = view.decision_on_text(item, action, answer)
                decisions.decide(
                    self._store, message_id, reviewer, stored, text, note.strip(), seen=seen
                )
            except DecisionConflictError as error:
                return self._paint_conflict(message_id, error)
            except TalkbackError as error:
                return {self.error: fragments.banner(str(error), "error")}
            gr.Info(view.CONFIRMATIONS[stored], duration=3)
            return self._paint(None) | {self.reviewer: name.strip()}

        return decide

    def _paint_conflict(self, message_id: str, error: DecisionConflictError) -> Changes:
        """Show what happened meanwhile, and keep what the reviewer has written."""
        changes = self._paint(message_id)
        del changes[self.answer], changes[self.note]
        return changes | {self.error: fragments.banner(str(error), "error")}

    def _paint(self, message_id: str | None, *, following: bool = False) -> Changes:
        """Show the queue as it is now, and one of its answers: the named one or the one following
        it, else the first. A named one that does not wait any more is shown before the queue."""
        items = queue.list_pending(self._store)
        listed = len(items)
        if following:
            message_id = view.following_id(items, message_id)
        if message_id and message_id not in [item.answer.id for item in items]:
            items.insert(0, queue.find_item(self._store, message_id))
        item = next((i for i in items if i.answer.id == message_id), items[0] if items else None)
        changes: Changes = {
            self.workspace: gr.update(visible=item is not None),
            self.empty_state: gr.update(visible=item is None, value=view.EMPTY_QUEUE),
            self.count: view.queue_count(queue.count_pending(self._store), listed),
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
        has_edit = item.proposed is not None
        return {
            self.context: view.item_context(item),
            self.original: original,
            self.proposed: proposed,
            self.proposals: gr.update(
                choices=view.proposal_choices(item),
                value=item.proposed,
                visible=len(item.proposals) > 1,
            ),
            self.answer: item.proposed or item.answer.content,
            self.seen: item.version,
            self.approve: gr.update(
                value=view.APPROVE_LABELS[has_edit],
                variant="primary" if has_edit else "secondary",
                interactive=has_edit or item.exchange.is_complete,
            ),
            self.correct: gr.update(variant="secondary" if has_edit else "primary"),
        }
