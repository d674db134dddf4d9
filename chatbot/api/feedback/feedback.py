"""Stores feedback on answers: ``POST /v1/feedback``, and TensorZero's ``POST /feedback``.

    curl localhost:8000/v1/feedback -H 'content-type: application/json' \\
        -d '{"message_id": "msg-...", "kind": "thumb", "value": {"up": false}}'
"""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, JsonValue

from chatbot.api import schemas
from chatbot.api.errors import ApiError
from chatbot.api.feedback.tensorzero import TensorZeroFeedback
from chatbot.api.fields import Identifier
from chatbot.auth.access import Caller
from chatbot.conversation import ForbiddenError
from feedback.ids import new_id
from feedback.kinds import FeedbackKind
from feedback.messages import Message

if TYPE_CHECKING:
    from chatbot.service import Service

FEEDBACK_EXAMPLES: list[JsonValue] = [
    {"message_id": "msg-…", "kind": "thumb", "value": {"up": False, "reasons": ["wrong"]}},
    {"message_id": "msg-…", "kind": "edit", "value": {"text": "We open at 8 am."}},
    {"message_id": "msg-…", "kind": "choice", "value": {"over": "msg-…"}},
    {"message_id": "msg-…", "kind": "comment", "value": {"text": "Too long."}},
]


class FeedbackRequest(BaseModel):
    """Holds the body of POST /v1/feedback: a value, or the kind's own fields in its place.

    ``idempotency_key`` makes sending it again safe: the same content gets the same id, other
    content is refused with 409. Two people may use the same key.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": FEEDBACK_EXAMPLES})
    message_id: Identifier
    kind: FeedbackKind
    value: dict[str, Any] | None = None
    user: Identifier | None = None
    idempotency_key: Identifier | None = None


def router(service: "Service") -> APIRouter:
    """Return the routes of feedback."""
    routes = APIRouter(tags=["feedback"], responses=schemas.ERROR_RESPONSES)
    user = Depends(service.access.role_dependency("user"))

    @routes.post("/v1/feedback", response_model=schemas.FeedbackResponse)
    def feedback(body: FeedbackRequest, caller: Annotated[Caller, user]) -> dict[str, str]:
        """Store feedback on an answer; the response is sent once it is on the disk."""
        return {"feedback_id": store_feedback(service, body, caller)}

    @routes.post("/feedback", response_model=schemas.FeedbackResponse)
    def tensorzero_feedback(
        body: TensorZeroFeedback, caller: Annotated[Caller, user]
    ) -> dict[str, str]:
        """Store feedback in the format of TensorZero's gateway."""
        return {"feedback_id": store_metric(service, body, caller)}

    return routes


def store_feedback(service: "Service", body: FeedbackRequest, caller: Caller) -> str:
    """Store one piece of feedback and return its id; without ``user`` it is from the person who
    got the answer."""
    value = body.value if body.value is not None else dict(body.model_extra or {})
    _check_complete(service, {body.message_id, str(value.get("over"))})
    answer = service.store.message(body.message_id)
    person = _rating_person(service, answer, caller, body.user)
    key, known = body.idempotency_key, bool(caller.id)
    return service.store.add_feedback(answer.id, person, body.kind, value, key, known=known)


def store_metric(service: "Service", body: TensorZeroFeedback, caller: Caller) -> str:
    """Store TensorZero's feedback as ours, or only check it, and return its id."""
    _check_complete(service, {str(body.inference_id), str(body.episode_id)})
    answer, (kind, value) = body.find_answer(service.store), body.kind_and_value()
    person = _rating_person(service, answer, caller, body.tag("user"))
    if body.dryrun:
        service.store.check_feedback(answer.id, kind, value)
        return new_id("fb")
    key = body.tag("idempotency_key")
    return service.store.add_feedback(answer.id, person, kind, value, key, known=bool(caller.id))


def _check_complete(service: "Service", ids: set[str]) -> None:
    """Raise ApiError (425) for an answer, or a conversation's last one, that is still streaming:
    its first chunk has named it, and feedback on it can be stored in a moment."""
    for turn in service.list_open_turns():
        named = turn.message_id in ids or turn.conversation_id in ids
        if named and not service.store.has_message(turn.message_id):
            raise ApiError(
                425,
                f"the answer {turn.message_id} is still being given; send this again in a second",
                code="too_early",
                headers={"Retry-After": "1"},
            )


def _rating_person(service: "Service", answer: Message, caller: Caller, user: str | None) -> str:
    """Return whose feedback this is; ForbiddenError on an answer to a person that the caller does
    not speak for."""
    asker = service.store.conversation(answer.conversation_id).person
    if not caller.acts_for(asker):
        raise ForbiddenError(f"{answer.id} is an answer to somebody else")
    return caller.person_named(user) if user else asker
