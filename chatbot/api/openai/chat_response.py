"""Renders turns as OpenAI's chat completions, whole or in the chunks of a stream.

Shapes: https://platform.openai.com/docs/api-reference/chat
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from chatbot.api.openai.logprobs import FormatLogprobs, Logprobs
from chatbot.api.openai.models import model_name
from chatbot.api.streaming import StreamedPart
from chatbot.turn import Turn


def chat_completion(turns: Sequence[Turn], format_logprobs: FormatLogprobs) -> dict[str, Any]:
    """Return a whole completion. Its id is that of the first answer; each choice has its own."""
    choices = [_choice(index, turn, format_logprobs) for index, turn in enumerate(turns)]
    envelope = _envelope(turns[0], "chat.completion") | {"metadata": _metadata(turns[0])}
    return envelope | {"choices": choices, "usage": _usage(turns)}


def _choice(index: int, turn: Turn, format_logprobs: FormatLogprobs) -> dict[str, Any]:
    """Return one answer; feedback on it names its ``message_id``."""
    message = {"role": "assistant", "content": turn.text, "refusal": None}
    return {
        "index": index,
        "message": message | ({"reasoning_content": turn.thought} if turn.thought else {}),
        "logprobs": _logprobs(turn, 0, len(turn.token_counts), format_logprobs),
        "finish_reason": _finish_reason(turn),
        "message_id": turn.message_id,
    }


class ChatChunks:
    """Renders the chunks of streamed answers, in the order in which they are sent."""

    def __init__(
        self, turns: Sequence[Turn], with_usage: bool, format_logprobs: FormatLogprobs
    ) -> None:
        self._turns = turns
        self._envelope = _envelope(turns[0], "chat.completion.chunk")
        self._with_usage = with_usage
        self._format_logprobs = format_logprobs
        self._sent = [0] * len(turns)
        """How many deltas of each answer have been rendered."""

    def opening(self) -> list[dict[str, Any]]:
        """Return the first chunk of each answer: the role, and the id that feedback names."""
        opening = {"role": "assistant", "content": ""}
        return [
            self._chunk(index, opening, more={"message_id": turn.message_id})
            | {"metadata": _metadata(turn)}
            for index, turn in enumerate(self._turns)
        ]

    def more(self, part: StreamedPart) -> list[dict[str, Any]]:
        """Return a chunk with more of the thought, and one with more text, of one answer."""
        index, chunks = part.index, []
        if part.thoughts:
            chunks.append(self._chunk(index, {"reasoning_content": "".join(part.thoughts)}))
        if part.deltas:
            sent, self._sent[index] = self._sent[index], self._sent[index] + len(part.deltas)
            turn = self._turns[index]
            logprobs = _logprobs(turn, sent, self._sent[index], self._format_logprobs)
            chunks.append(self._chunk(index, {"content": "".join(part.deltas)}, logprobs=logprobs))
        return chunks

    def closing(self) -> list[dict[str, Any]]:
        """Return the last chunk of each answer, with its finish reason, and the usage if wanted."""
        ends = [
            self._chunk(i, {}, finish=_finish_reason(turn)) for i, turn in enumerate(self._turns)
        ]
        if self._with_usage:
            ends.append(self._envelope | {"choices": [], "usage": _usage(self._turns)})
        return ends

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, str],
        *,
        finish: str | None = None,
        logprobs: Logprobs | None = None,
        more: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        ends = {"logprobs": logprobs, "finish_reason": finish}
        choice = {"index": index, "delta": delta, **ends, **(more or {})}
        usage: dict[str, None] = {"usage": None} if self._with_usage else {}
        return self._envelope | {"choices": [choice]} | usage


def _logprobs(turn: Turn, first: int, end: int, format_logprobs: FormatLogprobs) -> Logprobs | None:
    """Return those of an answer's deltas ``first`` to ``end``; None if they were not asked for."""
    if turn.logprobs is None:
        return None
    # reach[i] is the number of tokens up to the end of delta i, so these are the token bounds; the
    # thought's tokens are before them.
    start, stop = (
        turn.token_counts[deltas - 1] if deltas else turn.thought_tokens for deltas in (first, end)
    )
    return format_logprobs(turn.logprobs[start:stop])


def _envelope(turn: Turn, kind: str) -> dict[str, Any]:
    return {
        "id": turn.message_id,
        "object": kind,
        "created": int(time.time()),
        "model": model_name(turn.adapter),
        "system_fingerprint": turn.speaker.base_revision,
    }


def _metadata(turn: Turn) -> dict[str, str]:
    """Return what continues the conversation, and where the answer comes from."""
    return {
        "conversation_id": turn.conversation_id,
        "user_message_id": turn.user_message_id,
        "source": turn.speaker.source,
        "exemplars": ",".join(turn.speaker.exemplars),
    }


def _usage(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return the token counts; the prompt counts once, however many answers it has."""
    prompt_tokens = turns[0].speaker.prompt_tokens
    completion_tokens = sum(turn.speaker.completion_tokens for turn in turns)
    thought_tokens = sum(turn.thought_tokens for turn in turns)
    details = {"completion_tokens_details": {"reasoning_tokens": thought_tokens}}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        **(details if thought_tokens else {}),
    }


def _finish_reason(turn: Turn) -> str:
    """Return the finish reason; OpenAI has none for a cancelled answer, which is shorter too."""
    return "stop" if turn.speaker.finish == "stop" else "length"
