"""Translates requests into bodies of ``/v1/completions``, and the events that come into streams."""

from collections.abc import AsyncIterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from chatbot.engine.protocol import EngineError, Request, Sampling
from chatbot.engine.remote.replica import ReplicaError
from chatbot.engine.stream import FinishReason, Stream, TokenLogprob
from chatbot.engine.text.thought_splitter import ThoughtSplitter

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
TOKEN_PREFIX = "token_id:"
"""How vLLM marks a token id among log probabilities; several tokens may have the same text."""


def token_body(
    request: Request, model: str, max_tokens: int, end_token_ids: list[int]
) -> dict[str, Any]:
    """Return the body for vLLM: the prompt's token ids and every sampling value.

    Nothing is left out, for vLLM's defaults come from the model. ``max_tokens`` is the most of the
    answer, ``end_token_ids`` end it.
    """
    sampling = request.sampling
    marks = {"skip_special_tokens": False} if sampling.thinking else {}
    return {
        **_common_fields(sampling, model, max_tokens),
        **marks,
        "prompt": request.prompt_ids,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logprobs": sampling.logprobs,
        "return_tokens_as_token_ids": True,
        "stop_token_ids": end_token_ids,
        "return_token_ids": True,
    }


def text_body(
    request: Request, model: str, max_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return the body for any OpenAI-compatible server: the prompt as text, no needless fields.

    Raises EngineError for logprobs, which such a server does not give by token id.
    """
    sampling = request.sampling
    if sampling.logprobs is not None:
        raise EngineError("The server tells no tokens. Leave logprobs out, or serve with vLLM.")
    body = _common_fields(sampling, model, max_tokens)
    body["prompt"] = tokenizer.decode(
        request.prompt_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
    for name in ("top_k", "min_p", "frequency_penalty", "presence_penalty"):
        if value := getattr(sampling, name):
            body[name] = value
    return body


def _common_fields(sampling: Sampling, model: str, max_tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return body


async def fill_stream(
    events: AsyncIterator[dict[str, Any]], stream: Stream, num_top_logprobs: int = 0
) -> FinishReason:
    """Append a server's answer to ``stream`` as it comes, and return why it ended.

    Raises ReplicaError where it breaks off. A server may send several tokens in one event, or
    text without its tokens.
    """
    finish = ""
    async for event in events:
        for choice in _choices(event):
            stream.logprobs += _token_logprobs(choice.get("logprobs") or {}, num_top_logprobs)
            _append(choice.get("token_ids") or [], str(choice.get("text") or ""), stream)
            finish = str(choice.get("finish_reason") or finish)
        if (usage := event.get("usage")) and len(stream.ids) == stream.thought_tokens:
            stream.reported_tokens = stream.thought_tokens + (usage.get("completion_tokens") or 0)
    if finish not in FINISH_REASONS:
        raise ReplicaError(f"It broke off: {finish or 'the answer has no end'}")
    return FINISH_REASONS[finish]


async def fill_thought(
    events: AsyncIterator[dict[str, Any]], stream: Stream, splitter: ThoughtSplitter
) -> FinishReason:
    """Append a server's answer to the thought of ``stream``, up to where the answer begins.

    Raises ReplicaError where it breaks off.
    """
    async for event in events:
        for choice in _choices(event):
            thought, _ = splitter.add(str(choice.get("text") or ""))
            if thought:
                stream.mark_first_token()
                stream.append_thought(thought)
        if splitter.phase == "answer":
            break
    return "stop"


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    if error := event.get("error"):
        raise ReplicaError(f"It broke off: {_error_message(error)}")
    return event.get("choices") or []


def _append(token_ids: list[int], text: str, stream: Stream) -> None:
    if token_ids or text:
        stream.mark_first_token()
    for token in token_ids[:-1]:
        stream.append_token(token, "")
    for token in token_ids[-1:]:
        stream.append_token(token, text)
    if not token_ids:
        stream.append_text(text)


def _token_logprobs(logprobs: dict[str, Any], num_top_logprobs: int) -> list[TokenLogprob]:
    """Return the log probability of each token, each with its ``num_top_logprobs`` likeliest.

    vLLM lists the chosen token among the likeliest, even where it is not one of so many.
    """
    listed = zip(
        logprobs.get("tokens") or [],
        logprobs.get("token_logprobs") or [],
        logprobs.get("top_logprobs") or [],
        strict=True,
    )
    return [
        TokenLogprob(_token_id(token), logprob, _top_logprobs(top, num_top_logprobs))
        for token, logprob, top in listed
    ]


def _top_logprobs(top: dict[str, float], count: int) -> tuple[tuple[int, float], ...]:
    best = sorted(top.items(), key=lambda pair: -pair[1])[:count]
    return tuple((_token_id(token), logprob) for token, logprob in best)


def _token_id(token: str) -> int:
    return int(token.removeprefix(TOKEN_PREFIX))


def _error_message(error: Any) -> str:
    return str(error.get("message") if isinstance(error, dict) else error)
