"""People's say over HTTP: reviewers decide on answers, operators on who speaks.

    curl -H "Authorization: Bearer tb-..." localhost:8000/v1/reviews/next

Every decision is kept with the name of the key that it came with.
"""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from chatbot.api.schemas import ERROR_RESPONSES
from chatbot.auth.access import Caller
from chatbot.registry import AdapterRow, Promotion
from feedback.messages import Role
from feedback.review import decisions, queue
from feedback.review.decisions import Action, Decision
from feedback.review.queue import QueueItem

if TYPE_CHECKING:
    from chatbot.service import Service


class ReviewTurn(BaseModel):
    """A turn of the conversation that led to the answer."""

    role: Role
    content: str


class ReviewItem(BaseModel):
    """An answer that waits for a reviewer."""

    message_id: str
    question: str
    answer: str
    proposed: str | None
    """The newest edit of it."""
    why: str
    reasons: list[str]
    comments: list[str]
    thread: list[ReviewTurn]


class NextReview(BaseModel):
    """The most pressing answer, None when none waits, and how many wait."""

    waiting: int
    item: ReviewItem | None


class ReviewRequest(BaseModel):
    """The body of POST /v1/reviews/{message_id}. ``answer`` is the right text: needed to correct;
    with ``approve`` it is the text that was seen, and refused when that is not the newest."""

    action: Action
    answer: str | None = None
    note: str = ""
    reviewer: str = ""
    """Who decides, where the key has no name."""


class AdapterEntry(BaseModel):
    """An adapter with the verdicts on it, newest first."""

    id: str
    parent: str | None
    base: str
    snapshot: str | None
    created_at: str
    speaking: bool
    verdicts: list[str]


class AdapterList(BaseModel):
    """All adapters, newest first. ``warning`` says why a promoted one does not speak, if so."""

    speaking: str
    warning: str
    adapters: list[AdapterEntry]


class PromotionRequest(BaseModel):
    """The body of a promotion or rollback."""

    reason: Annotated[str, Field(min_length=1, pattern=r"\S")]
    who: str = ""
    """Who decides, where the key has no name."""


def router(service: "Service") -> APIRouter:
    """The routes of reviews and adapters."""
    routes = APIRouter(prefix="/v1", tags=["oversight"], responses=ERROR_RESPONSES)
    reviewer = Depends(service.access.role_dependency("reviewer"))
    operator = Depends(service.access.role_dependency("operator"))

    @routes.get("/reviews/next", dependencies=[reviewer])
    def next_review() -> NextReview:
        """The answer that most needs a reviewer."""
        first = queue.list_pending(service.store, limit=1)
        item = review_item(first[0]) if first else None
        return NextReview(waiting=queue.count_pending(service.store), item=item)

    @routes.post("/reviews/{message_id}")
    def decide(
        message_id: str, body: ReviewRequest, caller: Annotated[Caller, reviewer]
    ) -> Decision:
        """Approve, correct or reject an answer; at work from the next question on."""
        who = caller.decider(body.reviewer, "reviewer")
        return decisions.decide(service.store, message_id, who, body.action, body.answer, body.note)

    @routes.get("/adapters", dependencies=[reviewer])
    def adapters() -> AdapterList:
        """All adapters, and which one speaks."""
        rows = [adapter_entry(service, row) for row in service.registry.adapters()]
        return AdapterList(speaking=service.speaking, warning=service.warning, adapters=rows)

    @routes.post("/adapters/rollback")
    def rollback(body: PromotionRequest, caller: Annotated[Caller, operator]) -> Promotion:
        """Put the adapter that was in service before back; it speaks within a second."""
        return service.registry.rollback(caller.decider(body.who, "operator"), body.reason)

    @routes.post("/adapters/{id}/promote")
    def promote(id: str, body: PromotionRequest, caller: Annotated[Caller, operator]) -> Promotion:
        """Put an adapter in service; it speaks within a second."""
        who = caller.decider(body.who, "operator")
        return service.registry.promote(id, "person", who, body.reason)

    return routes


def review_item(item: QueueItem) -> ReviewItem:
    """An item of the queue as it is sent."""
    return ReviewItem(
        message_id=item.answer.id,
        question=item.question,
        answer=item.answer.content,
        proposed=item.proposed,
        why=item.why,
        reasons=item.reasons,
        comments=item.comments,
        thread=[
            ReviewTurn(role=turn.role, content=turn.content) for turn in item.exchange.thread[:-1]
        ],
    )


def adapter_entry(service: "Service", row: AdapterRow) -> AdapterEntry:
    """An adapter as it is sent."""
    return AdapterEntry(
        id=row.id,
        parent=row.parent,
        base=row.base,
        snapshot=row.snapshot,
        created_at=row.created_at,
        speaking=row.id == service.speaking,
        verdicts=[report.verdict for report in service.registry.reports(row.id)],
    )
