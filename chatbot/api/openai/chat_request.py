"""Parses and checks the requests of OpenAI's chat completions; ``chat_response`` answers them.

Shapes: https://platform.openai.com/docs/api-reference/chat
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from chatbot.api.errors import ApiError
from chatbot.api.fields import Identifier, Label
from chatbot.api.openai.models import SERVED_MODEL_NAME, pinned_adapter
from chatbot.chat_settings import DEFAULT_THINKING
from chatbot.engine.default_sampling import RANGES
from chatbot.engine.protocol import Sampling
from feedback.messages import Role

MAX_ANSWERS = 8
"""The largest ``n``."""

Effort = Literal["none", "minimal", "low", "medium", "high"]
THINKING: dict[Effort, int] = {
    "none": 0,
    "minimal": 128,
    "low": 512,
    "medium": DEFAULT_THINKING,
    "high": 8192,
}
"""Most tokens of a thought, by OpenAI's ``reasoning_effort``."""

TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]

UNSUPPORTED_FIELDS: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that would change the answer but are not supported, and the values of them that are
accepted because they change nothing. Other unknown fields are ignored: clients send many that have
no influence on the answer."""


CHAT_REQUEST_EXAMPLE: JsonDict = {
    "model": SERVED_MODEL_NAME,
    "messages": [{"role": "user", "content": "When do you open?"}],
    "max_completion_tokens": 64,
    "user": "ann",
    "metadata": {},
}


class ContentPart(BaseModel):
    """Holds a piece of a message."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """Holds one message of the request."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]

    def text(self) -> str:
        """Return the text of all parts, one a line; ApiError (400) for images and the like."""
        if isinstance(self.content, str):
            return self.content
        unsupported = next((part.type for part in self.content if part.text is None), None)
        if unsupported is not None:
            message = f"a part of type {unsupported!r} is not supported; send text"
            raise ApiError(400, message, param="messages", code="unsupported_content")
        return "\n".join(part.text or "" for part in self.content)


class StreamOptions(BaseModel):
    """Holds the options of a streamed response."""

    include_usage: bool = False


class TemplateOptions(BaseModel):
    """Holds what a client asks of the chat template; other options change nothing."""

    enable_thinking: Annotated[bool | None, Field(strict=True)] = None


class ChatRequest(BaseModel):
    """Holds the body of POST /v1/chat/completions."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [CHAT_REQUEST_EXAMPLE]})
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Identifier = SERVED_MODEL_NAME
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_ANSWERS)] = 1
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: dict[TokenId, Bias] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    chat_template_kwargs: TemplateOptions | None = None
    """``enable_thinking`` has a base that can think do so, or not."""
    reasoning_effort: Effort | None = None
    """How long it may think; "none": not at all."""
    user: Identifier | None = None
    metadata: dict[Label, Label] | None = None
    """``conversation_id`` continues a stored conversation after its newest message, or after
    ``parent_message_id``; ``unaided`` = "true" leaves approved answers out."""

    @property
    def adapter(self) -> str | None:
        """Return the adapter that the model's name pins, None for the one in service; ApiError."""
        return pinned_adapter(self.model)

    @property
    def system(self) -> str | None:
        """Return the client's own system prompt, None when it sends none."""
        prompts = [
            message.text() for message in self.messages if message.role in ("system", "developer")
        ]
        return "\n\n".join(prompts) if prompts else None

    def turns(self) -> list[tuple[Role, str]]:
        """Return the turns (role, text), of which the last is the question; ApiError (400)."""
        turns: list[tuple[Role, str]] = [
            ("user" if message.role == "user" else "assistant", message.text())
            for message in self.messages
            if message.role in ("user", "assistant")
        ]
        if not turns or turns[-1][0] != "user":
            raise ApiError(400, "the last message must be the user's", param="messages")
        return turns

    def sampling(self, defaults: Sampling) -> Sampling:
        """Return the request's sampling parameters; what it leaves out is as in ``defaults``."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given = {name: getattr(self, name) for name in RANGES}
        return replace(
            defaults,
            **{name: value for name, value in given.items() if value is not None},
            max_tokens=self.max_completion_tokens or self.max_tokens or defaults.max_tokens,
            stop=tuple(text for text in stop if text),
            seed=self.seed,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            thinking=self._thinking(defaults.thinking),
        )

    def _thinking(self, default: int) -> int:
        """Return the most tokens of a thought; either of the request's two fields turns it off."""
        enabled = self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking
        if enabled is False:
            return 0
        if self.reasoning_effort is not None:
            return THINKING[self.reasoning_effort]
        return default or (DEFAULT_THINKING if enabled else 0)

    def check_supported(self, vocab_size: int) -> None:
        """Raise ApiError (400) for parameters that would be silently ignored otherwise.

        ``vocab_size`` bounds the token ids of ``logit_bias``.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options goes with stream: true", param="stream_options")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs: true", param="top_logprobs")
        out_of_vocab = next((token for token in self.logit_bias or {} if token >= vocab_size), None)
        if out_of_vocab is not None:
            message = f"there is no token {out_of_vocab}; the vocabulary has {vocab_size}"
            raise ApiError(400, message, param="logit_bias")
        for key, value in (self.model_extra or {}).items():
            if (
                key in UNSUPPORTED_FIELDS
                and value is not None
                and value not in UNSUPPORTED_FIELDS[key]
            ):
                message = f"{key} is not supported; leave it out"
                raise ApiError(400, message, param=key, code="unsupported_parameter")
