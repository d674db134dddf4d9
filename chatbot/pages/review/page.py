"""The review page: what people corrected or disliked, one answer after the other.

Left the queue, right the answer with its conversation; a decision opens the next one.
"""

from typing import TYPE_CHECKING, Any

import gradio as gr

from chatbot.auth.access import Caller
from chatbot.pages import theme
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.login_form import LoginForm
from chatbot.pages.review import view
from feedback.errors import TalkbackError
from feedback.review import decisions, queue
from feedback.store import Store

if TYPE_CHECKING:
    from chatbot.service import Service

Changes = dict[Any, Any]
# The next case begins above the buttons that closed the last one.
TO_TOP = "() => document.querySelector('#tb-case .tb-error') || window.scrollTo(0, 0)"
EVENT = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


class ReviewPage:
    """The components of the page and what happens when they are used."""

    def __init__(self, service: "Service", people: BrowserIdentities) -> None:
        self._service = service
        self._store: Store = service.store
        self._people = people
        self.login_form = LoginForm(service, "reviewer", "review answers")

    def build(self, blocks: gr.Blocks) -> None:
        """Lay the page out inside `blocks` and connect it."""
        gr.HTML(theme.header(self._service.chat_settings.title, "Review"), padding=False)
        secret = self._people.storage_secret
        self.reviewer = gr.BrowserState("", storage_key="talkback_reviewer", secret=secret)
        with gr.Column(elem_classes="tb-page"):
            self.login_form.build()
            with gr.Row(visible=False, elem_id="tb-desk") as self.desk:
                self._queue()
                self._case()
            self.nothing = gr.HTML("", visible=False, padding=False)
        self._connect(blocks)

    def _queue(self) -> None:
        with gr.Column(scale=1, min_width=260, elem_id="tb-queue"):
            self.count = gr.HTML("", padding=False)
            self.items = gr.Radio(
                [], show_label=False, label="Waiting answers", container=False, elem_id="tb-items"
            )

    def _case(self) -> None:
        with gr.Column(scale=3, min_width=320, elem_id="tb-case"):
            self.about = gr.HTML("", padding=False)
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
            with gr.Row(elem_id="tb-signed"):
                self.note = gr.Textbox(
                    label="Note",
                    show_label=False,
                    container=False,
                    placeholder="Note (optional)",
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
            with gr.Row(elem_classes="tb-actions"):
                self.approve = gr.Button("Approve", variant="primary", elem_id="tb-approve")
                self.correct = gr.Button("Save my correction", elem_id="tb-correct")
                self.reject = gr.Button("Reject", elem_id="tb-reject")
                self.skip = gr.Button("Next", elem_id="tb-next", elem_classes="tb-link")
            self.said = gr.HTML("", padding=False)

    def _connect(self, blocks: gr.Blocks) -> None:
        everything = [
            *self.login_form.parts,
            self.reviewer,
            self.desk,
            self.nothing,
            self.count,
            self.items,
            self.about,
            self.original,
            self.proposed,
            self.answer,
            self.note,
            self.name,
            self.said,
            self.approve,
        ]
        blocks.load(self._arrive, [self.reviewer], everything, **EVENT)
        self.items.input(self._open, [self.items], everything, **EVENT)
        self.skip.click(self._next, [self.items], everything, **EVENT)
        given = [self.items, self.answer, self.note, self.name]
        for button, action in (
            (self.approve, "approve"),
            (self.correct, "correct"),
            (self.reject, "reject"),
        ):
            decided = button.click(self._decide(action), given, everything, **EVENT)
            decided.success(None, None, None, js=TO_TOP)

    def _arrive(self, reviewer: object, request: gr.Request) -> Changes:
        caller = self.login_form.caller(request)
        if not self.login_form.lets(caller):
            return self.login_form.shut(caller) | {self.desk: gr.update(visible=False)}
        signed = gr.update(value=str(reviewer or ""), visible=not caller.name)
        return self.login_form.opened(caller) | self._paint(None) | {self.name: signed}

    def _open(self, message_id: str, request: gr.Request) -> Changes:
        self.login_form.require(request)
        return self._paint(message_id)

    def _next(self, message_id: str | None, request: gr.Request) -> Changes:
        self.login_form.require(request)
        return self._paint(view.following_id(queue.list_pending(self._store), message_id))

    def _decide(self, action: str) -> Any:
        def decide(
            message_id: str | None, answer: str, note: str, name: str, request: gr.Request
        ) -> Changes:
            caller = self.login_form.require(request)
            if not message_id:
                return self._paint(None)
            if action == "correct" and not answer.strip():
                return {self.said: view.EMPTY_ANSWER}
            try:
                said = self._keep(action, message_id, answer, note, _who(caller, name))
            except TalkbackError as error:
                return {self.said: theme.banner(str(error), "error")}
            gr.Info(said, duration=3)
            following = view.following_id(queue.list_pending(self._store), message_id)
            return self._paint(following) | {self.reviewer: name.strip()}

        return decide

    def _keep(self, action: str, message_id: str, answer: str, note: str, reviewer: str) -> str:
        """Store the decision. Whoever approves a text they have changed means the changed one."""
        proposal = view.proposed_text(self._store, message_id)
        if action == "approve" and answer.strip() != proposal.strip():
            action = "correct"
        text = {"approve": proposal, "correct": answer, "reject": None}[action]
        decisions.decide(self._store, message_id, reviewer, action, text, note.strip())
        return view.CONFIRMATIONS[action]

    def _paint(self, message_id: str | None) -> Changes:
        """The queue as it is now, and one of its answers: the named one, else the first."""
        items = queue.list_pending(self._store)
        item = next((i for i in items if i.answer.id == message_id), items[0] if items else None)
        changes: Changes = {
            self.desk: gr.update(visible=item is not None),
            self.nothing: gr.update(visible=item is None, value=view.EMPTY_QUEUE),
            self.count: view.queue_count(queue.count_pending(self._store), len(items)),
            self.items: gr.update(
                choices=[(view.item_label(i), i.answer.id) for i in items],
                value=item.answer.id if item else None,
            ),
            self.note: "",
            self.said: "",
        }
        return changes | self._paint_case(item) if item else changes

    def _paint_case(self, item: queue.QueueItem) -> Changes:
        left, right = view.side_by_side(item)
        return {
            self.about: view.item_context(item),
            self.original: left,
            self.proposed: right,
            self.answer: item.proposed or item.answer.content,
            self.approve: view.APPROVE_LABELS[item.proposed is not None],
        }


def _who(caller: Caller, name: str) -> str:
    """Whose decision it is: the key's owner, else whoever signs."""
    return caller.name or name.strip() or "reviewer"
