"""Sends answers as server-sent events, in as few pieces as people would notice.

Each piece costs a wake-up and a write, here and at the client, and all other streams wait for it:
the head of the response goes out with the first text, and its end with the last. An answer that
breaks off before its first text is an error response with a status, like an answer in one piece.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from chatbot.api.errors import to_api_error
from chatbot.api.streaming import AnswerStreams, StreamedPart, raise_if_interrupted
from chatbot.turn import Turn


class StreamChunks(Protocol):
    """Renders streamed answers in one dialect of the API; each dialect brings its own."""

    def opening(self) -> list[dict[str, Any]]:
        """Return what is sent before the first text."""

    def more(self, part: StreamedPart) -> list[dict[str, Any]]:
        """Return what is sent for more of one answer."""

    def closing(self) -> list[dict[str, Any]]:
        """Return what is sent after the last text."""


@dataclass
class UnansweredError(Exception):
    """Signals an error before the first text: the response can be an error with its status."""

    error: Exception


class EventStreamResponse(Response):
    """Streams the answers of some turns. A client that disconnects cancels them."""

    media_type = "text/event-stream"

    def __init__(self, answers: AnswerStreams, turns: Sequence[Turn], chunks: StreamChunks) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answers, self._turns, self._chunks = answers, turns, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Starlette's StreamingResponse would start a task group for it, and
        send its head and its end as messages of their own."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._answers.cancel_on_disconnect(receive):
            try:
                async for text, more in self._pieces():
                    if head:
                        await send(head)
                        head = {}
                    body = {"body": text.encode(), "more_body": more}
                    await send({"type": "http.response.body", **body})
            except UnansweredError as unanswered:
                await to_api_error(unanswered.error).response()(scope, receive, send)

    async def _pieces(self) -> AsyncIterator[tuple[str, bool]]:
        """Yield text, and whether more will come. The end comes once the answers are stored."""
        opening = _encode_events(self._chunks.opening())
        try:
            async for batch in self._answers:
                chunks = [chunk for part in batch for chunk in self._chunks.more(part)]
                yield opening + _encode_events(chunks), True
                opening = ""
            raise_if_interrupted(self._turns)
            end = _encode_events(self._chunks.closing())
        except Exception as error:
            if opening:
                raise UnansweredError(error) from error
            end = _encode_events([to_api_error(error).body()])
        yield opening + end + "data: [DONE]\n\n", False


def _encode_events(payloads: Iterable[dict[str, Any]]) -> str:
    return "".join(f"data: {json.dumps(payload, ensure_ascii=False)}\n\n" for payload in payloads)
