"""Answers as server-sent events, in as few pieces as people would notice.

Each piece is a wake-up and a write, here and where it is heard, and all other streams wait for it:
the head of the response goes out with the first words, and its end with the last.
"""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from chatbot.api.errors import ApiError, to_api_error
from chatbot.api.openai.chat_response import ChatChunks
from chatbot.api.streaming import AnswerStreams
from chatbot.turn import Turn


class EventStreamResponse(Response):
    """What the turns of a flow say. A client that goes away cancels them, and so ends it."""

    media_type = "text/event-stream"

    def __init__(self, flow: AnswerStreams, turns: Sequence[Turn], chunks: ChatChunks) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._flow, self._turns, self._chunks = flow, turns, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's own response for streams has a group of tasks, and pieces for both ends."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._flow.cancel_on_disconnect(receive):
            async for text, more in self._pieces():
                if head:
                    await send(head)
                    head = {}
                await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

    async def _pieces(self) -> AsyncIterator[tuple[str, bool]]:
        """Text, and whether more will come. The end is told once the answers are stored."""
        opening = _encode_events(self._chunks.opening())
        try:
            async for batch in self._flow:
                yield opening + _encode_events(self._chunks.delta(*some) for some in batch), True
                opening = ""
            raise_if_interrupted(self._turns)
            end = _encode_events(self._chunks.closing())
        except Exception as error:
            end = _encode_events([to_api_error(error).body()])
        yield opening + end + "data: [DONE]\n\n", False


def raise_if_interrupted(turns: Sequence[Turn]) -> None:
    """An answer that broke off is an error, although its beginning is kept."""
    for turn in turns:
        if turn.speaker.finish in ("error", "cancelled"):
            why = turn.error or "the server is stopping"
            raise ApiError(503, f"The answer broke off: {why}", "server_error", code="broken_off")


def _encode_events(payloads: Iterable[dict[str, Any]]) -> str:
    return "".join(f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in payloads)
