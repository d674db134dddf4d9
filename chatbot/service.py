"""What a running server is made of, and the watcher that follows promotions.

    service = Service.open(Home.find(None))
    turn = ask(service, None, "ann", None, "When do you open?").begin()

A new promotion is verified, loaded and warmed before the first answer is given by it; an adapter
that fails is refused with a warning, and the one before goes on speaking.
"""

import logging
import threading
import weakref
from collections import OrderedDict
from typing import Self

from chatbot.auth.access import Access
from chatbot.engine import factory
from chatbot.engine.protocol import (
    BASE,
    Engine,
    EngineBusyError,
    Request,
    Sampling,
    UnknownAdapterError,
    UnreachableError,
)
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.engine.workers.worker_handle import Worker
from chatbot.metrics import Metrics
from chatbot.model import lora
from chatbot.model.base import Base, encode
from chatbot.registry import Promotion, Registry
from chatbot.turn import ChatSettings, Turn
from feedback.db.group_commit import GroupCommit
from feedback.errors import TalkbackError
from feedback.settings import Home
from feedback.store import Store

log = logging.getLogger("talkback")

POLL_SECONDS = 0.5
MAX_PINNED = 4
"""Adapters beside the speaking one that stay loaded because somebody asked for them by name."""


class Service:
    """Store, registry, base and engine of one home.

    ``speaking`` is the id of the adapter that answers new turns. ``warning`` is "" or one line
    for people: why a promoted adapter does not speak. ``access`` says who may do what; unless the
    server sets another, it is that of a server on loopback. ``context`` is the number of tokens
    that prompt and answer share. ``meters`` are moved by what happens here. ``keeper`` stores
    questions and answers of many people in one go.
    """

    home: Home
    store: Store
    registry: Registry
    base: Base
    engine: Engine
    chat_settings: ChatSettings
    context_length: int
    speaking: str
    warning: str
    access: Access
    metrics: Metrics
    group_commit: GroupCommit

    def __init__(
        self,
        home: Home,
        store: Store,
        base: Base,
        engine: Engine,
        *,
        chat: ChatSettings,
        context: int,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Put the adapter in service to work and follow promotions from then on."""
        self.home, self.store, self.base, self.engine = home, store, base, engine
        self.registry = Registry(store, home)
        self.chat_settings, self.context_length = chat, context
        self.access = Access(store, home.root)
        self.speaking, self.warning = BASE, ""
        self.metrics = Metrics()
        self.group_commit = GroupCommit(store)
        self.open_turns: weakref.WeakSet[Turn] = weakref.WeakSet()
        self._pinned: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._refused: str | None = None
        self._following = threading.Lock()
        self.registry.ensure_promoted(base)
        self._begin()
        self._watcher = threading.Thread(
            target=self._watch, args=(poll_seconds,), name="promotions", daemon=True
        )
        self._watcher.start()

    @classmethod
    def open(
        cls,
        home: Home,
        base_name: str | None = None,
        revision: str | None = None,
        *,
        first: Worker | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> Self:
        """Load the base, start its engine and speak. ``first`` is a worker that was made early.

        Raises BaseError, SettingsError, StoreError, EngineError.
        """
        chat, settings = ChatSettings.read(home), EngineSettings.read(home)
        store = Store(home.db)
        base, engine = factory.start(settings, base_name, revision, first)
        return cls(
            home, store, base, engine, chat=chat, context=engine.max_length,
            poll_seconds=poll_seconds,
        )  # fmt: skip

    def adapters(self) -> list[str]:
        """Ids of all adapters that can be asked for by name, newest first; ``base`` is another."""
        ours = self.base.revision
        return [row.id for row in self.registry.adapters() if row.base_revision == ours]

    def check_adapter(self, adapter: str | None) -> None:
        """Raise UnknownAdapterError for a name that nobody here answers to; None is fine."""
        if adapter is not None and adapter != BASE and adapter not in (known := self.adapters()):
            raise UnknownAdapterError(adapter, [BASE, *known])

    def submit(
        self, prompt_ids: list[int], adapter: str | None, sampling: Sampling
    ) -> tuple[str, Stream]:
        """Ask ``adapter`` (None: the one in service), loading it if need be; who speaks, and how.

        Raises UnknownAdapterError, AdapterError, EngineBusyError, PromptTooLongError.
        """
        for _ in range(3):
            chosen = adapter or self.speaking
            if adapter is not None:
                self._pin(adapter)
            try:
                return chosen, self.engine.submit(Request(prompt_ids, chosen, sampling))
            except EngineBusyError:
                self.metrics.refused.inc()
                raise
            except UnknownAdapterError:
                continue  # it was unloaded between the choice and the question: choose again
        raise UnknownAdapterError(chosen, self.engine.adapters())

    def follow(self) -> bool:
        """Let the newest promotion speak; True if that changed who speaks. The watcher calls it."""
        with self._following:
            promotion = self._follow()
            if promotion is not None:
                self.metrics.record_swap(promotion)
        return promotion is not None

    def _follow(self) -> Promotion | None:
        """The promotion whose adapter speaks from now on, if it did not before."""
        promotion = self.registry.promotion()
        if promotion is None or promotion.adapter == self.speaking:
            self._refused, self.warning = None, ""
            return None
        if promotion.id == self._refused:
            return None
        try:
            self._take(promotion.adapter)
        except (
            EngineBusyError,
            UnreachableError,
        ) as error:  # no fault of the adapter's: tried again
            self._warn(f"{promotion.adapter} was promoted but has to wait: {error}")
            return None
        except TalkbackError as error:
            self._refused = promotion.id
            self._warn(f"{promotion.adapter} was promoted but is refused: {error}")
            return None
        return promotion

    def _warn(self, warning: str) -> None:
        if warning != self.warning:
            log.warning("%s; %s goes on speaking", warning, self.speaking)
        self.warning = warning

    def close(self) -> None:
        """Stop following, end every stream and keep what it has said, free the model."""
        self._closing.set()
        self._watcher.join()
        self.engine.close()
        self.group_commit.shutdown()
        for turn in list(self.open_turns):
            turn.close()
        self.store.close()

    def _begin(self) -> None:
        """Speak; when the adapter in service is damaged, with the newest before it that is not."""
        self._follow()
        warning, refused = self.warning, self._refused
        for earlier in reversed(self.registry.serving_order()[:-1]):
            if self.speaking != BASE:
                break
            try:
                self._take(earlier)
            except TalkbackError as error:
                log.warning("%s does not speak either: %s", earlier, error)
        self.warning, self._refused = warning, refused

    def _take(self, adapter: str) -> None:
        """Verify, load, warm, flip, and let the one before go when its last stream has ended."""
        lora.verify(self.registry.folder(adapter), self.base)
        with self._lock:
            self.engine.load(adapter, self.registry.folder(adapter))
        self._warm(adapter)
        with self._lock:
            before, self.speaking, self.warning, self._refused = self.speaking, adapter, "", None
            if before not in (BASE, adapter) and before not in self._pinned:
                self.engine.unload(before)
        log.info("%s speaks now (before: %s)", adapter, before)

    def _warm(self, adapter: str) -> None:
        """One short answer: what cannot speak is found out before people hear it."""
        ids = encode(self.base.tokenizer, [{"role": "user", "content": "Hello"}])
        stream = self.engine.submit(Request(ids, adapter, Sampling(max_tokens=2)))
        if not stream.wait(120) or stream.finish == "error":
            stream.cancel()
            self.engine.unload(adapter)
            raise lora.AdapterError(f"{adapter} does not answer: {stream.error or 'no end'}")

    def _pin(self, adapter: str) -> None:
        """Have an adapter loaded that was asked for by name, and not too many of them."""
        if adapter == BASE:
            return
        with self._lock:
            if adapter not in self.engine.adapters():
                self.check_adapter(adapter)
                lora.verify(self.registry.folder(adapter), self.base)
                self.engine.load(adapter, self.registry.folder(adapter))
            if adapter == self.speaking:
                return
            self._pinned[adapter] = None
            self._pinned.move_to_end(adapter)
            while len(self._pinned) > MAX_PINNED:
                oldest, _ = self._pinned.popitem(last=False)
                if oldest != self.speaking:
                    self.engine.unload(oldest)

    def _watch(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            try:
                self.follow()
            except Exception:
                log.exception("following promotions failed; trying again")
