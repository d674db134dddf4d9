"""Hands out answers that wait for a reviewer and takes the decisions: ``/v1/reviews``.

    curl -H "Authorization: Bearer tb-..." localhost:8000/v1/reviews/next

Every decision is stored with the name of the key that it came with.
"""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from chatbot.api.fields import Identifier, LimitedText
from chatbot.api.schemas import ERROR_RESPONSES
from chatbot.auth.access import Caller
from feedback.messages import Role
from feedback.review import decisions, queue
from feedback.review.decision_row import Action, Decision
from feedback.review.queue import Proposal, QueueItem

if TYPE_CHECKING:
    from chatbot.service import Service


class ReviewTurn(BaseModel):
    """Holds a turn of the conversation that led to the answer."""

    role: Role
    content: str


class ReviewItem(BaseModel):
    """Describes an answer that waits for a reviewer."""

    message_id: str
    question: str
    answer: str
    proposed: str | None
    """The newest edit of it."""
    edits: list[Proposal]
    """All edits of it, by their text; the newest is at the end."""
    disagree: bool
    """Whether different people propose different texts."""
    finish: str
    """Why it ended; an answer that did not "stop" was cut, and cannot be approved as it is."""
    why: str
    reasons: list[str]
    comments: list[str]
    thread: list[ReviewTurn]
    decision: Decision | None
    """The decision in force on it; None when nobody has decided yet."""
    version: str
    """What was seen: send it back as ``seen`` with the decision."""


class NextReview(BaseModel):
    """Holds the most pressing answer, None when the queue is empty, and the length of the queue."""

    waiting: int
    item: ReviewItem | None


class ReviewRequest(BaseModel):
    """Holds the body of POST /v1/reviews/{message_id}. ``answer`` is the right text: needed to
    correct; with ``approve`` it is the text that was seen, and refused when that is not
    the newest. ``seen`` is the item's version that was seen: anything said or decided since
    is answered with 409. Without it a decision that would overrule another reviewer's is."""

    action: Action
    answer: LimitedText | None = None
    note: LimitedText = ""
    seen: Identifier | None = None
    reviewer: Identifier = ""
    """Who decides, where the key has no name."""


def router(service: "Service") -> APIRouter:
    """Return the routes of /v1/reviews."""
    routes = APIRouter(prefix="/v1", tags=["oversight"], responses=ERROR_RESPONSES)
    reviewer = Depends(service.access.role_dependency("reviewer"))

    @routes.get("/reviews/next", dependencies=[reviewer])
    def next_review() -> NextReview:
        """Return the answer that most needs a reviewer."""
        first = queue.list_pending(service.store, limit=1)
        item = review_item(first[0]) if first else None
        return NextReview(waiting=queue.count_pending(service.store), item=item)

    @routes.get("/reviews/{message_id}", dependencies=[reviewer])
    def show_review(message_id: str) -> ReviewItem:
        """Return an answer as reviewers see it now, decided or not."""
        return review_item(queue.find_item(service.store, message_id))

    @routes.post("/reviews/{message_id}")
    def decide(
        message_id: str, body: ReviewRequest, caller: Annotated[Caller, reviewer]
    ) -> Decision:
        """Approve, correct or reject an answer; the decision applies from the next question on."""
        who = caller.decider(body.reviewer, "reviewer")
        given = (body.action, body.answer, body.note)
        return decisions.decide(service.store, message_id, who, *given, seen=body.seen)

    return routes


def review_item(item: QueueItem) -> ReviewItem:
    """Return an item of the queue as it is sent."""
    return ReviewItem(
        message_id=item.answer.id,
        question=item.question,
        answer=item.answer.content,
        proposed=item.proposed,
        edits=item.proposals,
        disagree=item.disagree,
        finish=item.finish,
        why=item.why,
        reasons=item.reasons,
        comments=item.comments,
        thread=[
            ReviewTurn(role=turn.role, content=turn.content) for turn in item.exchange.thread[:-1]
        ],
        decision=item.decision,
        version=item.version,
    )
