"""Follows promotions: loads what was promoted, checks that it answers, and switches to it.

    rollout = Rollout(registry, base, engine, Metrics())
    adapter, stream = rollout.submit(prompt_ids, None, Sampling())

A new promotion is verified, loaded and warmed up before the first answer is given by it. An adapter
that fails is refused with a warning, and the one before it goes on speaking.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from chatbot.engine.protocol import (
    BASE,
    Engine,
    EngineBusyError,
    Request,
    Sampling,
    UnknownAdapterError,
    UnreachableError,
)
from chatbot.engine.readiness import Readiness
from chatbot.engine.stream import Stream
from chatbot.metrics import Metrics
from chatbot.model.adapter import AdapterError, verify_adapter
from chatbot.model.base import Base
from chatbot.model.chat_template import encode
from chatbot.registry import Promotion, Registry
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

POLL_SECONDS = 0.5
"""Seconds between two looks at the registry."""
MAX_PINNED = 4
"""Adapters beside the speaking one that stay loaded because somebody asked for them by name."""
WARM_UP_SECONDS = 120
"""Seconds in which an adapter has to give its first, short answer."""


class Rollout:
    """Decides which adapter speaks, and keeps it and the adapters asked for by name loaded.

    ``speaking`` is the id of the adapter that answers new turns. ``warning`` is "" or one line for
    people: why a promoted adapter does not speak.
    """

    speaking: str
    warning: str

    def __init__(
        self,
        registry: Registry,
        base: Base,
        engine: Engine,
        metrics: Metrics,
        poll_seconds: float = POLL_SECONDS,
        on_switch: Callable[[], object] = lambda: None,
    ) -> None:
        """Load the adapter that is in service, and follow promotions from then on. ``on_switch`` is
        called whenever an adapter begins to speak."""
        self._on_switch = on_switch
        self._registry, self._base = registry, base
        self.engine, self._metrics = engine, metrics
        self.speaking, self.warning = BASE, ""
        self._pinned: OrderedDict[str, None] = OrderedDict()
        """The adapters asked for by name, the latest at the end."""
        self._refused: str | None = None
        """The id of the newest promotion, if its adapter was refused: it is not tried again."""
        self._adapters_lock = threading.RLock()
        """Guards what is loaded and who speaks; an adapter is read from the disk under it."""
        self._follow_lock = threading.Lock()
        """Lets one thread at a time follow promotions: the watcher, or who has just promoted."""
        self._closing = threading.Event()
        self.readiness = Readiness(engine, lambda: self._ask_briefly(self.speaking))
        """Whether the adapter in service answers."""
        registry.ensure_promoted(base)
        if change := registry.base_change():
            log.warning("%s", change.reason)
        self._start_speaking()
        self.readiness.start()
        self._watcher = threading.Thread(
            target=self._watch, args=(poll_seconds,), name="promotions", daemon=True
        )
        self._watcher.start()

    def adapters(self) -> list[str]:
        """Return the ids of all adapters of this base, newest first, without ``base`` itself."""
        ours = self._registry.bases.revisions(self._base.revision)
        return [row.id for row in self._registry.adapters() if row.base_revision in ours]

    def check_adapter(self, adapter: str | None) -> None:
        """Raise UnknownAdapterError for a name that no adapter has; None is the one in service."""
        if adapter is not None and adapter != BASE and adapter not in (known := self.adapters()):
            raise UnknownAdapterError(adapter, [BASE, *known])

    def submit(
        self, prompt_ids: list[int], adapter: str | None, sampling: Sampling
    ) -> tuple[str, Stream]:
        """Ask ``adapter`` (None: the one in service), loading it if needed; return its id and the
        stream of its answer.

        Raises UnknownAdapterError, AdapterError, EngineBusyError, PromptTooLongError.
        """
        for _ in range(3):
            chosen = adapter or self.speaking
            if adapter is not None:
                self._pin(adapter)
            try:
                stream = self.engine.submit(Request(prompt_ids, chosen, sampling))
            except EngineBusyError:
                self._metrics.refused.inc()
                raise
            except UnreachableError as error:
                if chosen == self.speaking:
                    self.readiness.record_failure(str(error))
                raise
            except UnknownAdapterError:
                continue  # it was unloaded between the choice and the question: choose again
            if chosen == self.speaking:  # what is wrong with another one concerns who asked for it
                self.readiness.follow_stream(stream)
            return chosen, stream
        raise UnknownAdapterError(chosen, self.engine.adapters())

    def follow(self) -> bool:
        """Switch to the newest promotion's adapter; return True if another adapter speaks now.

        The watcher calls it twice a second; who has just promoted calls it to be sooner.
        """
        with self._follow_lock:
            promotion = self._follow_newest()
            if promotion is not None:
                self._metrics.record_swap(promotion)
        return promotion is not None

    def close(self) -> None:
        """Stop following promotions."""
        self.readiness.close()
        self._closing.set()
        self._watcher.join()

    def _start_speaking(self) -> None:
        """Switch to the adapter in service, or to the newest before it that is not damaged."""
        self._follow_newest()
        warning, refused = self.warning, self._refused
        for earlier in reversed(self._registry.serving_order()[:-1]):
            if self.speaking != BASE:
                break
            try:
                self._switch_to(earlier)
            except TalkbackError as error:
                log.warning("%s does not speak either: %s", earlier, error)
        self.warning, self._refused = warning, refused

    def _follow_newest(self) -> Promotion | None:
        """Follow the newest promotion; return it if its adapter did not speak before."""
        promotion = self._registry.promotion()
        if promotion is None or promotion.adapter == self.speaking:
            self._refused, self.warning = None, ""
            return None
        if promotion.id == self._refused:
            return None
        try:
            self._switch_to(promotion.adapter)
        except (EngineBusyError, UnreachableError) as error:
            # It is no fault of the adapter's, so the promotion is tried again.
            self._warn(f"{promotion.adapter} was promoted but has to wait: {error}")
            return None
        except TalkbackError as error:
            self._refused = promotion.id
            self._warn(f"{promotion.adapter} was promoted but is refused: {error}")
            return None
        return promotion

    def _switch_to(self, adapter: str) -> None:
        """Load and warm up an adapter, let it speak, and unload the former one.

        The engine verifies an adapter as it reads it: what was hashed is what speaks. Nothing that
        people see changes before the new adapter has answered once. The engine keeps the former
        adapter until its last stream has ended.
        """
        folder = self._registry.folder(adapter)
        if adapter in self.engine.adapters():  # then the engine does not read its files again
            verify_adapter(folder, self._base)
        with self._adapters_lock:
            self.engine.load(adapter, folder)
        self._warm_up(adapter)
        with self._adapters_lock:
            former, self.speaking, self.warning, self._refused = self.speaking, adapter, "", None
            if former not in (BASE, adapter) and former not in self._pinned:
                self.engine.unload(former)
        log.info("%s speaks now (before: %s)", adapter, former)
        self._on_switch()

    def _warm_up(self, adapter: str) -> None:
        """Have the adapter give one short answer; AdapterError, and unload it, if it cannot."""
        stream = self._ask_briefly(adapter)
        if not stream.wait(WARM_UP_SECONDS) or stream.finish == "error":
            stream.cancel()
            self.engine.unload(adapter)
            raise AdapterError(f"{adapter} does not answer: {stream.error or 'no end'}")
        self.readiness.record_token()

    def _ask_briefly(self, adapter: str) -> Stream:
        ids = encode(self._base.tokenizer, [{"role": "user", "content": "Hello"}])
        return self.engine.submit(Request(ids, adapter, Sampling(max_tokens=2)))

    def _pin(self, adapter: str) -> None:
        """Load an adapter that was asked for by name, and unload the one not used for longest."""
        if adapter == BASE:
            return
        with self._adapters_lock:
            if adapter not in self.engine.adapters():
                self.check_adapter(adapter)
                self.engine.load(adapter, self._registry.folder(adapter))
            if adapter == self.speaking:
                return
            self._pinned[adapter] = None
            self._pinned.move_to_end(adapter)
            while len(self._pinned) > MAX_PINNED:
                oldest, _ = self._pinned.popitem(last=False)
                if oldest != self.speaking:
                    self.engine.unload(oldest)

    def _warn(self, warning: str) -> None:
        if warning != self.warning:
            log.warning("%s; %s goes on speaking", warning, self.speaking)
        self.warning = warning

    def _watch(self, seconds: float) -> None:
        failure = ""
        while not self._closing.wait(seconds):
            try:
                self.follow()
                failure = ""
            except Exception as error:
                if failure != str(error):  # or it fills the log, twice a second
                    log.exception("following promotions failed; trying again")
                failure = str(error)
