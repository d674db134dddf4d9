"""The chat completions of OpenAI's API: what comes in, checked, and what goes out.

Shapes: https://platform.openai.com/docs/api-reference/chat
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chatbot.engine import BASE, Sampling
from chatbot.problems import Problem
from chatbot.turn import ChatSettings, Turn
from feedback.store import Role

FOLLOWING = "talkback"
"""The model that follows promotions; ``talkback:<adapter>`` pins one."""

ANONYMOUS = "anonymous"
"""The person of a request that names no ``user``."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that would change the answer but are not supported, and the values that ask for nothing.
Other fields that are not known are let pass: clients send many that change nothing."""


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One message of the request."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def text(self) -> str:
        """The words, in one piece; images and the like are refused."""
        if isinstance(self.content, str):
            return self.content
        odd = next((part.type for part in self.content if part.text is None), None)
        if odd is not None:
            message = f"a part of type {odd!r} is not supported; send text"
            raise Problem(400, message, param="messages", code="unsupported_content")
        return "\n".join(part.text or "" for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(extra="allow")
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str = FOLLOWING
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    """``conversation_id`` continues a stored conversation; ``unaided`` = "true" leaves approved
    answers out."""

    @property
    def person(self) -> str:
        """Who speaks."""
        return self.user or ANONYMOUS

    @property
    def adapter(self) -> str | None:
        """The adapter that the model's name pins; None: the one in service."""
        name, _, adapter = self.model.partition(":")
        if name != FOLLOWING or (":" in self.model and not adapter):
            message = f"there is no model {self.model!r}; GET /v1/models lists those there are"
            raise Problem(404, message, param="model", code="model_not_found")
        return adapter or None

    @property
    def system(self) -> str | None:
        """The client's own system prompt, None when it sends none."""
        told = [m.text() for m in self.messages if m.role in ("system", "developer")]
        return "\n\n".join(told) if told else None

    def turns(self) -> list[tuple[Role, str]]:
        """What was said, (role, text), the last being the question."""
        said: list[tuple[Role, str]] = [
            ("user" if m.role == "user" else "assistant", m.text())
            for m in self.messages
            if m.role in ("user", "assistant")
        ]
        if not said or said[-1][0] != "user":
            raise Problem(400, "the last message must be the user's", param="messages")
        return said

    def sampling(self, chat: ChatSettings) -> Sampling:
        """The request's sampling over the settings'."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens or chat.max_tokens,
            temperature=chat.temperature if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            stop=tuple(text for text in stop if text),
            seed=self.seed,
        )

    def refuse_unsupported(self) -> None:
        """Raise for what would be silently ignored otherwise."""
        for key, value in (self.model_extra or {}).items():
            if key in NEUTRAL and value is not None and value not in NEUTRAL[key]:
                message = f"{key} is not supported; leave it out"
                raise Problem(400, message, param=key, code="unsupported_parameter")


def model_card(adapter: str | None, base: str) -> dict[str, Any]:
    """One entry of GET /v1/models, with parent and root as in vLLM."""
    name = f"{FOLLOWING}:{adapter}" if adapter else FOLLOWING
    card = {"id": name, "object": "model", "created": 0, "owned_by": "talkback"}
    return card | {"root": adapter or name, "parent": None if adapter == BASE else base}


def completion(turn: Turn) -> dict[str, Any]:
    """The plain answer; its id is the message that feedback hangs on."""
    message = {"role": "assistant", "content": turn.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(turn)}
    head = _head(turn, "chat.completion") | {"metadata": _metadata(turn)}
    return head | {"choices": [choice], "usage": _usage(turn)}


class Chunks:
    """The pieces of a streamed answer, in the order in which they are sent."""

    def __init__(self, turn: Turn, with_usage: bool) -> None:
        self._turn = turn
        self._head = _head(turn, "chat.completion.chunk")
        self._with_usage = with_usage

    def first(self) -> dict[str, Any]:
        """Who speaks, before the first word."""
        chunk = self._chunk({"role": "assistant", "content": ""})
        return chunk | {"metadata": _metadata(self._turn)}

    def words(self, text: str) -> dict[str, Any]:
        """Some more text."""
        return self._chunk({"content": text})

    def last(self) -> list[dict[str, Any]]:
        """How it ended, and what it took if that was asked for."""
        end = [self._chunk({}, _reason(self._turn))]
        if self._with_usage:
            end.append(self._head | {"choices": [], "usage": _usage(self._turn)})
        return end

    def _chunk(self, delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage: dict[str, None] = {"usage": None} if self._with_usage else {}
        return self._head | {"choices": [choice]} | usage


def _head(turn: Turn, kind: str) -> dict[str, Any]:
    return {
        "id": turn.message_id,
        "object": kind,
        "created": int(time.time()),
        "model": f"{FOLLOWING}:{turn.adapter}",
        "system_fingerprint": turn.speaker.base_revision,
    }


def _metadata(turn: Turn) -> dict[str, str]:
    """What continues the conversation, and where the answer comes from."""
    return {
        "conversation_id": turn.conversation_id,
        "user_message_id": turn.user_message_id,
        "source": turn.speaker.source,
        "exemplars": ",".join(turn.speaker.exemplars),
    }


def _usage(turn: Turn) -> dict[str, int]:
    asked, told = turn.speaker.prompt_tokens, turn.speaker.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}


def _reason(turn: Turn) -> str:
    """OpenAI knows no word for an answer that was cancelled; it is shorter than it would be."""
    return "stop" if turn.speaker.finish == "stop" else "length"
