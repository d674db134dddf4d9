"""Between a request of ours and a server's: the body that is sent, and the events that come."""

from collections.abc import AsyncIterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from chatbot.engine.protocol import EngineError, Request, Sampling
from chatbot.engine.remote.replica import ReplicaError
from chatbot.engine.stream import FinishReason, Stream, TokenLogprob

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
TOKEN_PREFIX = "token_id:"
"""How vLLM writes a token among log probabilities, for a token's text need not be its own."""


def token_body(
    request: Request, model: str, max_tokens: int, end_token_ids: list[int]
) -> dict[str, Any]:
    """What vLLM is asked: our own token ids, and every number, for its defaults are the model's.

    ``limit`` is the most tokens of the answer, ``ends`` are the tokens that end it.
    """
    sampling = request.sampling
    return {
        **_common_fields(sampling, model, max_tokens),
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
    """What any OpenAI-compatible server is asked: the prompt's text, and no more than is needed."""
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
        body["logit_bias"] = {str(token): by for token, by in sampling.logit_bias}
    return body


async def fill_stream(
    events: AsyncIterator[dict[str, Any]], stream: Stream, num_top_logprobs: int = 0
) -> FinishReason:
    """Put an answer into its stream as it comes; how it ended. Raises Failed where it breaks off.

    A server may send several tokens in one event, or text without its tokens.
    """
    finish = ""
    async for event in events:
        if error := event.get("error"):
            raise ReplicaError(f"It broke off: {_error_message(error)}")
        for choice in event.get("choices") or []:
            stream.logprobs += _token_logprobs(choice.get("logprobs") or {}, num_top_logprobs)
            _append(choice.get("token_ids") or [], str(choice.get("text") or ""), stream)
            finish = str(choice.get("finish_reason") or finish)
        if (usage := event.get("usage")) and not stream.ids:
            stream.reported_tokens = usage.get("completion_tokens")
    if finish not in FINISH_REASONS:
        raise ReplicaError(f"It broke off: {finish or 'the answer has no end'}")
    return FINISH_REASONS[finish]


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
    """The tokens' chances, each with ``most`` likeliest: vLLM lists the chosen token with them."""
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
