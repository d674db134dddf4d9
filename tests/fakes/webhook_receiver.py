"""Receives webhooks: a real HTTP server on loopback that keeps what is sent to it."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = b"thirty-two bytes that are secret"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


def has_valid_signature(headers: Mapping[str, str], body: bytes) -> bool:
    """Tell whether the signature is right, as the specification has a receiver check it."""
    content = headers["webhook-id"] + "." + headers["webhook-timestamp"] + "." + body.decode()
    digest = hmac.new(KEY, content.encode(), hashlib.sha256).digest()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return fresh and headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


class WebhookReceiver:
    """Answers with ``statuses`` in their order, then always 200; use it in a ``with``."""

    def __init__(self, *statuses: int, port: int = 0) -> None:
        self.statuses = list(statuses)
        self.attempts: list[str] = []
        """Ids of all requests."""
        self.received: list[dict[str, Any]] = []
        """Bodies of those that were acknowledged."""
        self.forged = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ids(self) -> list[str]:
        """Return the ids of the rows that it has acknowledged, in order."""
        return [body["data"]["id"] for body in self.received]

    def wait(self, done: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until a condition holds; fail with what was received after `seconds`."""
        due = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < due, (self.attempts, self.received)
            time.sleep(0.01)

    def receive(self, headers: Mapping[str, str], body: bytes) -> int:
        """Keep one request; return the status to answer with."""
        self.attempts.append(headers["webhook-id"])
        self.forged += not has_valid_signature(headers, body)
        status = self.statuses.pop(0) if self.statuses else 200
        if status < 300:
            self.received.append(json.loads(body))
        return status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(receiver.receive(self.headers, body))
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler
