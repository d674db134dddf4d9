"""Describes the API's responses for its OpenAPI document; handlers themselves send plain dicts."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorInfo(BaseModel):
    """Holds OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Holds the body of every error response."""

    error: ErrorInfo


class TopLogprob(BaseModel):
    """Holds the log probability of one token."""

    token: str
    bytes: list[int] | None
    logprob: float


class ChatTokenLogprob(TopLogprob):
    """Holds the log probability of a generated token and of its likeliest alternatives."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Holds those of an answer's tokens. An approved answer that is given as it stands has none."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """Holds the text of an answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None
    reasoning_content: str | None = Field(
        default=None, description="What the model thought before; absent where it did not."
    )


class ChatChoice(BaseModel):
    """Holds one of the ``n`` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]
    message_id: str = Field(description="The answer's id, by which feedback names it.")


class CompletionTokensDetails(BaseModel):
    """Counts the tokens of thoughts, which are among the answers' tokens."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """Counts the tokens of the prompt, which all answers share, and of the answers together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails | None = None


class ChatCompletion(BaseModel):
    """Holds a whole completion. ``id`` is the first choice's ``message_id``; ``metadata`` has the
    ``conversation_id`` that continues the conversation when it is sent again,
    and the answer's ``source``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    metadata: dict[str, str]
    choices: list[ChatChoice]
    usage: CompletionUsage


class ModelCard(BaseModel):
    """Describes a model that can be asked, with parent and root as in vLLM."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None


class ModelList(BaseModel):
    """Lists the models that can be asked."""

    object: Literal["list"]
    data: list[ModelCard]


class FeedbackResponse(BaseModel):
    """Confirms feedback that is on the disk."""

    feedback_id: str


class ReadinessResponse(BaseModel):
    """Tells whether to send traffic here; ``reason`` says why not."""

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
    "5XX": {"model": ErrorResponse, "description": "The server is at fault or not ready"},
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
