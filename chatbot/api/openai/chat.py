"""The HTTP API that other chat platforms plug into: OpenAI's chat completions, and feedback.

    curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"model": "talkback", "messages": [{"role": "user", "content": "When do you open?"}]}'

Handlers parse, call one function and render. Errors leave in OpenAI's shape (``problems``).
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, JsonValue
from starlette.routing import compile_path

from chatbot.api import schemas
from chatbot.api.errors import ApiError
from chatbot.api.feedback.tensorzero import TensorZeroFeedback
from chatbot.api.openai.chat_request import ChatRequest, model_card
from chatbot.api.openai.chat_response import ChatChunks, chat_completion
from chatbot.api.openai.logprobs import LogprobsFormatter
from chatbot.api.sse import EventStreamResponse, raise_if_interrupted
from chatbot.api.streaming import AnswerStreams
from chatbot.auth.access import Caller
from chatbot.conversation import ForbiddenError
from chatbot.engine.protocol import BASE
from chatbot.question import PendingTurn, Question, ask
from feedback.ids import new_id
from feedback.kinds import FeedbackKind
from feedback.messages import Message

if TYPE_CHECKING:
    from chatbot.service import Service


HTTP_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]

MAX_CONCURRENT = 256
"""Questions that are asked at the same time where other servers answer. Here they are asked one by
one: on a thread each they would take turns at every query, and all be late."""

FEEDBACK_EXAMPLES: list[JsonValue] = [
    {"message_id": "msg-…", "kind": "thumb", "value": {"up": False, "reasons": ["wrong"]}},
    {"message_id": "msg-…", "kind": "edit", "value": {"text": "We open at 8 am."}},
    {"message_id": "msg-…", "kind": "choice", "value": {"over": "msg-…"}},
    {"message_id": "msg-…", "kind": "comment", "value": {"text": "Too long."}},
]


class FeedbackRequest(BaseModel):
    """The body of POST /v1/feedback: a value, or the kind's own fields in its place.

    ``idempotency_key`` makes sending it again safe: the same content gets the same id, other
    content is refused with 409. Keys are each person's own.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": FEEDBACK_EXAMPLES})
    message_id: str
    kind: FeedbackKind
    value: dict[str, Any] | None = None
    user: str | None = None
    idempotency_key: str | None = None


def router(service: "Service") -> APIRouter:
    """The routes under /v1, and /healthz."""
    routes = APIRouter(responses=schemas.ERROR_RESPONSES)
    user = Depends(service.access.role_dependency("user"))
    spell = LogprobsFormatter(service.base.tokenizer)
    asking = ThreadPoolExecutor(MAX_CONCURRENT if service.engine.submit_blocks else 1, "asking")

    @routes.post("/v1/chat/completions", tags=["chat"], responses=schemas.CHAT_RESPONSES)
    async def chat_completions(
        body: ChatRequest, request: Request, caller: Annotated[Caller, user]
    ) -> Response:
        """Answer the last message; the answer's id is what feedback hangs on."""
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(asking, ask_question, service, body, caller)
        try:
            first = await loop.run_in_executor(service.group_commit, asked.begin)
        except BaseException:
            asked.cancel()
            raise
        turns = [first, *first.alternatives]
        if body.stream:
            options = body.stream_options
            chunks = ChatChunks(turns, bool(options and options.include_usage), spell)
            return EventStreamResponse(AnswerStreams(turns, service.group_commit), turns, chunks)
        await AnswerStreams(turns, service.group_commit).wait(request.receive)
        raise_if_interrupted(turns)
        return JSONResponse(chat_completion(turns, spell))

    @routes.get("/v1/models", tags=["chat"], response_model=schemas.ModelList)
    def models() -> dict[str, Any]:
        """``talkback`` follows promotions, ``talkback:<adapter>`` stays with one."""
        names = [None, BASE, *service.rollout.adapters()]
        return {"object": "list", "data": [model_card(n, service.base.name) for n in names]}

    @routes.get("/v1/models/{name}", tags=["chat"], response_model=schemas.ModelCard)
    def model(name: str) -> dict[str, Any]:
        """One of them."""
        adapter = ChatRequest.model_construct(model=name).adapter
        service.rollout.check_adapter(adapter)
        return model_card(adapter, service.base.name)

    @routes.post("/v1/feedback", tags=["feedback"], response_model=schemas.FeedbackResponse)
    def feedback(body: FeedbackRequest, caller: Annotated[Caller, user]) -> dict[str, str]:
        """Keep what somebody says of an answer; answered once it is on the disk."""
        return {"feedback_id": store_feedback(service, body, caller)}

    @routes.post("/feedback", tags=["feedback"], response_model=schemas.FeedbackResponse)
    def tensorzero_feedback(
        body: TensorZeroFeedback, caller: Annotated[Caller, user]
    ) -> dict[str, str]:
        """The same, as TensorZero's gateway takes it."""
        return {"feedback_id": store_metric(service, body, caller)}

    @routes.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, Any]:
        """The process lives, and who speaks; whether to send people here is told by /readyz."""
        return {
            "ok": True,
            "status": "ready",
            "adapter": service.speaking,
            "base": service.base.name,
            "base_revision": service.base.revision,
            "warning": service.warning,
        }

    return routes


def not_found_router() -> APIRouter:
    """What ends all paths of the API that are not there; it comes after every other router."""
    routes = APIRouter()

    @routes.api_route("/v1/{rest:path}", methods=HTTP_METHODS, include_in_schema=False)
    @routes.api_route("/feedback", methods=HTTP_METHODS, include_in_schema=False)
    def nothing(request: Request) -> None:
        """What is not there is said in the API's own words, not in the page's."""
        raise _not_found_error(request)

    return routes


def ask_question(service: "Service", body: ChatRequest, caller: Caller) -> PendingTurn:
    """Have answered what a request asks for."""
    body.check_supported(len(service.base.tokenizer))
    *history, (_, text) = body.turns()
    metadata = body.metadata or {}
    conversation_id = metadata.get("conversation_id")
    question = Question(
        text,
        person=caller.person_named(body.user),
        conversation_id=conversation_id,
        parent_id=_parent_message_id(service, metadata),
        unstored_history=() if conversation_id else history,
        adapter=body.adapter,
        sampling=body.sampling(service.chat_settings),
        system_prompt=body.system,
        model_only=metadata.get("unaided") == "true",
        num_answers=body.n or 1,
    )
    return ask(service, question)


def _parent_message_id(service: "Service", metadata: Mapping[str, str]) -> str | None:
    """The message that a stored conversation goes on after: the one named, else its newest."""
    talk, named = metadata.get("conversation_id"), metadata.get("parent_message_id")
    if named and not talk:
        message = "parent_message_id goes with conversation_id"
        raise ApiError(400, message, param="metadata")
    last = service.store.latest_message(talk) if talk and not named else None
    return last.id if last else named


def _not_found_error(request: Request) -> ApiError:
    """404, or 405 where the OpenAPI document knows the path with other methods."""
    asked = f"{request.method} {request.url.path}"
    paths = request.app.openapi()["paths"]
    here = [path for path in paths if compile_path(path)[0].match(request.url.path)]
    known = ", ".join(sorted({method.upper() for path in here for method in paths[path]}))
    if not known:
        return ApiError(404, f"there is no {asked}", code="not_found")
    message = f"there is no {asked}; the method is {known}"
    return ApiError(405, message, code="method_not_allowed", headers={"Allow": known})


def store_feedback(service: "Service", body: FeedbackRequest, caller: Caller) -> str:
    """Store one piece of feedback; without ``user`` it is from the person who got the answer."""
    value = body.value if body.value is not None else dict(body.model_extra or {})
    answer = service.store.message(body.message_id)
    person = _feedback_person(service, answer, caller, body.user)
    return service.store.add_feedback(answer.id, person, body.kind, value, body.idempotency_key)


def store_metric(service: "Service", body: TensorZeroFeedback, caller: Caller) -> str:
    """Store TensorZero's feedback as ours, or only check it."""
    answer, (kind, value) = body.find_answer(service.store), body.kind_and_value()
    person = _feedback_person(service, answer, caller, body.tag("user"))
    if body.dryrun:
        service.store.check_feedback(answer.id, kind, value)
        return new_id("fb")
    key = body.tag("idempotency_key")
    return service.store.add_feedback(answer.id, person, kind, value, key)


def _feedback_person(service: "Service", answer: Message, caller: Caller, user: str | None) -> str:
    """Whose feedback this is; ForbiddenError on an answer to whom the caller does not speak for."""
    asked = service.store.conversation(answer.conversation_id).person
    if not caller.acts_for(asked):
        raise ForbiddenError(f"{answer.id} is an answer to somebody else")
    return caller.person_named(user) if user else asked
