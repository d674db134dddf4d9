"""Webhooks: what people said, reviewers decided and was promoted, told to the operator's URLs.

    [webhooks]
    urls = ["https://example.com/talkback"]
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Signed as https://www.standardwebhooks.com says. Each URL is told in order and at least once: how
far it has got is in the database, so that a crash of either side loses nothing, and what other
processes do is told too. A receiver that fails is asked again, ever more rarely, for ever.
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
"""Seconds until a failed event is sent again: doubled at each failure, up to the longest."""
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
    """``[webhooks]``: who is told what happens."""

    table: ClassVar[str] = "webhooks"

    urls: list[Annotated[str, AfterValidator(_check_url)]] = Field(default_factory=list)
    """Each hears all that happens from the first start with it on."""
    secret: str = ""
    """"whsec_" and at least 24 bytes in base64; receivers check the signature with it."""
    events: list[EventType] = Field(default_factory=lambda: list(outbox.EVENT_TYPES))
    """A rollback is a promotion too."""


@dataclass(frozen=True)
class DeliveryContext:
    """What all hooks of a server share."""

    store: Store
    key: bytes
    event_types: list[EventType]
    sender_lock: "SenderLock"
    closing: threading.Event
    poll: float
    first_wait: float


class WebhookDelivery:
    """A thread for each URL, so that one that is down keeps no other waiting."""

    def __init__(
        self,
        home: Home,
        store: Store,
        settings: WebhookSettings,
        *,
        poll: float = POLL_SECONDS,
        first_wait: float = FIRST_RETRY_SECONDS,
    ) -> None:
        """Raises SettingsError for a secret that cannot sign."""
        key = decode_secret(settings.secret) if settings.urls else b""
        self._sender_lock, self._closing = SenderLock(home), threading.Event()
        terms = DeliveryContext(
            store, key, settings.events, self._sender_lock, self._closing, poll, first_wait
        )
        self._threads = [WebhookThread(url, terms) for url in dict.fromkeys(settings.urls)]

    def start(self) -> None:
        """Tell from now on: also a URL that is new hears what happens next."""
        for hook in self._threads:
            hook.register()
            hook.start()

    def pending(self) -> int:
        """How many events the URL that is furthest behind has not heard of."""
        return max((hook.pending() for hook in self._threads), default=0)

    def close(self) -> None:
        """Stop; returns when the deliveries on their way have ended."""
        self._closing.set()
        for hook in self._threads:
            if hook.is_alive():
                hook.join()
        self._sender_lock.release()


class WebhookThread(threading.Thread):
    """Tells one URL; started and stopped by ``Hooks``."""

    def __init__(self, url: str, terms: DeliveryContext) -> None:
        super().__init__(name="webhook", daemon=True)
        self._url, self._context = url, terms
        self._failures, self._wait = 0, terms.poll

    def register(self) -> None:
        """Be known to the database, which says from now on how far this URL has got."""
        outbox.register(self._context.store, self._url)

    def pending(self) -> int:
        """How many events this URL has not heard of."""
        terms = self._context
        return outbox.count_after(
            terms.store, outbox.last_acknowledged(terms.store, self._url) or 0, terms.event_types
        )

    def run(self) -> None:
        """Until closed."""
        with httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as http:
            while not self._context.closing.wait(self._wait):
                try:
                    if self._context.sender_lock.acquire():
                        self._deliver_pending(http)
                except Exception:  # a database that is locked or full may be well again later
                    self._wait = self._backoff_seconds()
                    log.exception("webhooks stumble; trying again in %.0f s", self._wait)

    def _deliver_pending(self, http: httpx.Client) -> None:
        """All that is new, until one is refused; what is erased is passed over."""
        store, closing = self._context.store, self._context.closing
        told = outbox.last_acknowledged(store, self._url) or 0
        for event in outbox.events_after(store, told, self._context.event_types):
            if closing.is_set():
                return
            if event.data and (why := post_event(http, self._url, self._context.key, event)):
                return self._record_failure(why)
            outbox.acknowledge(store, self._url, event.number)
        self._failures, self._wait = 0, self._context.poll

    def _record_failure(self, why: str) -> None:
        self._wait = self._backoff_seconds()
        log.warning(
            "the webhook at %s fails: %s; %d events wait, trying again in %.0f s",
            httpx.URL(self._url).host,
            why,
            self.pending(),
            self._wait,
        )

    def _backoff_seconds(self) -> float:
        """Seconds to wait after one more failure; by chance, lest all senders come at once."""
        self._failures += 1
        wait = self._context.first_wait * 2.0 ** min(self._failures - 1, 30)
        return min(wait, MAX_RETRY_SECONDS) * random.uniform(0.5, 1)


class SenderLock:
    """Whether this process is the one that sends: two servers on one home would tell all twice."""

    def __init__(self, home: Home) -> None:
        self._path = home.root / "webhooks.lock"
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def acquire(self) -> bool:
        """Become it if nobody is; the system takes the lock back from a process that dies."""
        with self._lock:
            if self._file is None:
                self._file = try_lock(self._path)
            return self._file is not None

    def release(self) -> None:
        """Let another process send."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def post_event(client: httpx.Client, url: str, key: bytes, event: WebhookEvent) -> str | None:
    """Post one event; None once it is acknowledged (2xx), else why it is not."""
    body = json.dumps(event.payload(), ensure_ascii=False).encode()
    headers = signature_headers(key, event.id, int(time.time()), body)
    try:
        # Closed unread: what the receiver says beside its status could be of any length.
        with client.stream("POST", url, content=body, headers=headers) as answer:
            return None if answer.is_success else f"it answered {answer.status_code}"
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"


def signature_headers(key: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks; the id is the same at each attempt."""
    digest = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def decode_secret(secret: str) -> bytes:
    """The bytes that sign; SettingsError, which does not repeat the secret."""
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
