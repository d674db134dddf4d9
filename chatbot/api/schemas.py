"""Describes the API's responses for its OpenAPI document; handlers themselves send plain dicts."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorInfo(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Every answer that is an error."""

    error: ErrorInfo


class TopLogprob(BaseModel):
    token: str
    bytes: list[int] | None
    logprob: float


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """The tokens of an answer. An approved answer that is given as it stands has none."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the ``n`` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]
    message_id: str = Field(description="The answer's id, on which feedback hangs.")


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """A plain completion. ``id`` is the first choice's ``message_id``; ``metadata`` has the
    ``conversation_id`` that goes on where it is sent again, and the answer's ``source``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    metadata: dict[str, str]
    choices: list[ChatChoice]
    usage: CompletionUsage


class ModelCard(BaseModel):
    """A model that can be asked, with parent and root as in vLLM."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class FeedbackResponse(BaseModel):
    """Feedback that is on the disk."""

    feedback_id: str


class ReadinessResponse(BaseModel):
    """Whether to send people here; ``reason`` says why not."""

    ready: bool
    adapter: str
    warning: str
    reason: str | None = None


ERROR_EXAMPLE = {
    "error": {
        "message": "there is no model 'gpt-9'; GET /v1/models lists those there are",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
}

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": ErrorResponse,
        "description": "The request is refused; the message says why",
        "content": {"application/json": {"example": ERROR_EXAMPLE}},
    },
    "5XX": {"model": ErrorResponse, "description": "This house is at fault or not ready"},
}

CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletion,
        "description": "The answers, or with `stream` the chunks of them as server-sent events",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"id": "msg-…", "object": "chat.completion.chunk", …}\n\n'
                "data: [DONE]\n\n",
            }
        },
    }
}
