"""Delivers webhooks: feedback, decisions of reviewers and promotions, to the operator's URLs.

    [webhooks]
    urls = ["https://example.com/talkback"]
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Signed as https://www.standardwebhooks.com says. Each URL gets the events in order and at least
once: its last acknowledged event is in the database, so a crash of either side loses nothing, and
events that other processes write are delivered too. A receiver that fails is retried with
exponential backoff and jitter, without end.
"""

import base64
import hashlib
import hmac
import json
import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Annotated, ClassVar, TextIO

import httpx
from pydantic import AfterValidator, Field

from chatbot.webhooks import outbox
from chatbot.webhooks.outbox import EventType, WebhookEvent
from feedback.publish import try_lock
from feedback.settings import Home, Settings, SettingsError
from feedback.store import Store

log = logging.getLogger("talkback")

POLL_SECONDS = 0.5
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 300.0
"""Seconds until a failed event is sent again: doubled at each failure, up to the maximum."""
TIMEOUT_SECONDS = 10
SECRET_PREFIX = "whsec_"


def _check_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("write it as https://host/path, or http://")
    return url


class WebhookSettings(Settings):
    """Holds table ``[webhooks]``: which URLs get which events."""

    table: ClassVar[str] = "webhooks"

    urls: list[Annotated[str, AfterValidator(_check_url)]] = Field(default_factory=list)
    """Each gets all events from the first start that names it."""
    secret: str = ""
    """"whsec_" and at least 24 bytes in base64; receivers check the signature with it."""
    events: list[EventType] = Field(default_factory=lambda: list(outbox.EVENT_TYPES))
    """A rollback is a promotion too."""


@dataclass(frozen=True)
class DeliveryContext:
    """Holds what the delivery threads of a server share."""

    store: Store
    key: bytes
    event_types: list[EventType]
    sender_lock: "SenderLock"
    closing: threading.Event
    poll_seconds: float
    first_retry_seconds: float


class WebhookDelivery:
    """Runs a thread for each URL, so that one that is down delays no other."""

    def __init__(
        self,
        home: Home,
        store: Store,
        settings: WebhookSettings,
        *,
        poll_seconds: float = POLL_SECONDS,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
    ) -> None:
        """Prepare the threads; SettingsError for a secret that cannot sign."""
        key = decode_secret(settings.secret) if settings.urls else b""
        self._sender_lock, self._closing = SenderLock(home), threading.Event()
        context = DeliveryContext(
            store,
            key,
            settings.events,
            self._sender_lock,
            self._closing,
            poll_seconds,
            first_retry_seconds,
        )
        self._threads = [WebhookThread(url, context) for url in dict.fromkeys(settings.urls)]

    def start(self) -> None:
        """Deliver from now on; a URL that is new gets what happens from here."""
        for thread in self._threads:
            thread.register()
            thread.start()

    def pending(self) -> int:
        """Return how many events wait for the URL that is furthest behind."""
        return max((thread.pending() for thread in self._threads), default=0)

    def close(self) -> None:
        """Stop; return when the deliveries on their way have ended."""
        self._closing.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._sender_lock.release()


class WebhookThread(threading.Thread):
    """Delivers to one URL; started and stopped by ``WebhookDelivery``."""

    def __init__(self, url: str, context: DeliveryContext) -> None:
        super().__init__(name="webhook", daemon=True)
        self._url, self._context = url, context
        self._failures, self._wait_seconds = 0, context.poll_seconds

    def register(self) -> None:
        """Register the URL in the database, where its last acknowledged event is kept."""
        outbox.register(self._context.store, self._url)

    def pending(self) -> int:
        """Return how many events wait for this URL."""
        context = self._context
        return outbox.count_after(
            context.store,
            outbox.last_acknowledged(context.store, self._url) or 0,
            context.event_types,
        )

    def run(self) -> None:
        """Deliver what is pending, again and again, until closed."""
        with httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as http:
            while not self._context.closing.wait(self._wait_seconds):
                try:
                    if self._context.sender_lock.acquire():
                        self._deliver_pending(http)
                except (
                    Exception
                ):  # a database that is locked or full now may not be at the next try
                    self._wait_seconds = self._backoff_seconds()
                    log.exception("webhooks stumble; trying again in %.0f s", self._wait_seconds)

    def _deliver_pending(self, http: httpx.Client) -> None:
        """Deliver all new events in order, until one fails; erased ones are skipped."""
        store, closing = self._context.store, self._context.closing
        acknowledged = outbox.last_acknowledged(store, self._url) or 0
        for event in outbox.events_after(store, acknowledged, self._context.event_types):
            if closing.is_set():
                return
            if event.data and (failure := post_event(http, self._url, self._context.key, event)):
                return self._record_failure(failure)
            outbox.acknowledge(store, self._url, event.number)
        self._failures, self._wait_seconds = 0, self._context.poll_seconds

    def _record_failure(self, failure: str) -> None:
        self._wait_seconds = self._backoff_seconds()
        log.warning(
            "the webhook at %s fails: %s; %d events wait, trying again in %.0f s",
            httpx.URL(self._url).host,
            failure,
            self.pending(),
            self._wait_seconds,
        )

    def _backoff_seconds(self) -> float:
        """Count one more failure and return the seconds to wait: exponential backoff, with jitter
        so that senders do not retry at the same moment."""
        self._failures += 1
        wait = self._context.first_retry_seconds * 2.0 ** min(self._failures - 1, 30)
        return min(wait, MAX_RETRY_SECONDS) * random.uniform(0.5, 1)


class SenderLock:
    """Elects the process that sends, by a file lock: two servers on one home would send twice."""

    def __init__(self, home: Home) -> None:
        self._path = home.root / "webhooks.lock"
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def acquire(self) -> bool:
        """Take the lock unless another process has it, and tell whether it is ours.

        The operating system releases the lock of a process that dies.
        """
        with self._lock:
            if self._file is None:
                self._file = try_lock(self._path)
            return self._file is not None

    def release(self) -> None:
        """Release the lock, so that another process can send."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def post_event(client: httpx.Client, url: str, key: bytes, event: WebhookEvent) -> str | None:
    """Post one event; return None once it is acknowledged (2xx), else why it is not."""
    body = json.dumps(event.payload(), ensure_ascii=False).encode()
    headers = signature_headers(key, event.id, int(time.time()), body)
    try:
        # Closed unread: the body of the receiver's response could be of any length.
        with client.stream("POST", url, content=body, headers=headers) as answer:
            return None if answer.is_success else f"it answered {answer.status_code}"
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"


def signature_headers(key: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks; the id is the same at each attempt."""
    digest = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def decode_secret(secret: str) -> bytes:
    """Return the bytes of the signing key; SettingsError, which does not repeat the secret."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) < 24:
        raise SettingsError(
            'secret in table [webhooks] has to be "whsec_" and at least 24 bytes in base64; '
            'make one with: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key
