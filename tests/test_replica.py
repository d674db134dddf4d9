"""One replica: its refusals and its events."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from chatbot.engine.protocol import BASE, EngineError
from chatbot.engine.remote.replica import parse_events
from tests.fixtures.async_thread import run_in_thread
from tests.fixtures.remote_base import LONG, Connect, RemoteBase, Serve


def test_what_the_server_refuses_is_told_in_its_words(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    engine = connect(server)
    server.max_model_len = 30
    with pytest.raises(EngineError, match="maximum context length is 30"):
        engine.submit(remote_base.request(BASE, LONG))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_events_are_cut_at_line_feeds_only_wherever_the_network_cuts_them() -> None:
    text = (
        'data: {"text": "a\u2028b\u0085c"}\r\n\r\n: ping\n\ndata: {"text": "d"}\n\ndata: [DONE]\n'
    )

    async def read(*parts: bytes) -> list[dict[str, Any]]:
        return [event async for event in parse_events(chunks(*parts))]

    data = text.encode()
    for cut in range(len(data)):
        found = run_in_thread(read(data[:cut], data[cut:]))
        assert found == [{"text": "a\u2028b\u0085c"}, {"text": "d"}]
    with pytest.raises(EngineError, match="no event"):
        run_in_thread(read(b"data: nonsense\n"))
