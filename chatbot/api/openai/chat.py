"""Answers OpenAI's chat completions: ``POST /v1/chat/completions``.

    curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"model": "talkback", "messages": [{"role": "user", "content": "When do you open?"}]}'

Handlers parse, call one function and render. Errors leave in OpenAI's shape (``api.errors``).
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from chatbot.api import schemas
from chatbot.api.errors import ApiError
from chatbot.api.openai.chat_request import ChatRequest
from chatbot.api.openai.chat_response import ChatChunks, chat_completion
from chatbot.api.openai.logprobs import LogprobsFormatter
from chatbot.api.sse import EventStreamResponse
from chatbot.api.streaming import AnswerStreams, raise_if_interrupted
from chatbot.auth.access import Caller
from chatbot.question import PendingTurn, Question, ask

if TYPE_CHECKING:
    from chatbot.service import Service

MAX_CONCURRENT = 256
"""Questions that are submitted at the same time where that waits for another server. A local engine
gets them one by one: on a thread each, they would hand the interpreter to each other at every
database query, and all be late."""


def router(service: "Service") -> APIRouter:
    """Return the route of chat completions."""
    routes = APIRouter(responses=schemas.ERROR_RESPONSES)
    user = Depends(service.access.role_dependency("user"))
    format_logprobs = LogprobsFormatter(service.base.tokenizer)
    asking = ThreadPoolExecutor(MAX_CONCURRENT if service.engine.submit_blocks else 1, "asking")

    @routes.post("/v1/chat/completions", tags=["chat"], responses=schemas.CHAT_RESPONSES)
    async def chat_completions(
        body: ChatRequest, request: Request, caller: Annotated[Caller, user]
    ) -> Response:
        """Answer the last message; feedback names the answer by its id."""
        loop = asyncio.get_running_loop()
        pending = await loop.run_in_executor(asking, ask_question, service, body, caller)
        try:
            first = await loop.run_in_executor(service.group_commit, pending.begin)
        except BaseException:
            pending.cancel()
            raise
        turns = [first, *first.alternatives]
        answers = AnswerStreams(turns, service.group_commit)
        if body.stream:
            options = body.stream_options
            with_usage = bool(options and options.include_usage)
            return EventStreamResponse(
                answers, turns, ChatChunks(turns, with_usage, format_logprobs)
            )
        await answers.wait(request.receive)
        raise_if_interrupted(turns)
        return JSONResponse(chat_completion(turns, format_logprobs))

    return routes


def ask_question(service: "Service", body: ChatRequest, caller: Caller) -> PendingTurn:
    """Submit the request's last message to the engine; nothing is stored yet."""
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
        sampling=body.sampling(service.default_sampling),
        system_prompt=body.system,
        model_only=metadata.get("unaided") == "true",
        num_answers=body.n or 1,
    )
    return ask(service, question)


def _parent_message_id(service: "Service", metadata: Mapping[str, str]) -> str | None:
    """Return the message that a stored conversation continues after: the one named, else its
    newest; None for a new conversation."""
    conversation_id = metadata.get("conversation_id")
    parent_id = metadata.get("parent_message_id")
    if parent_id and not conversation_id:
        message = "parent_message_id goes with conversation_id"
        raise ApiError(400, message, param="metadata")
    if parent_id or not conversation_id:
        return parent_id
    newest = service.store.latest_message(conversation_id)
    return newest.id if newest else None
