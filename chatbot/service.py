"""Holds the parts of a running server: store, registry, base, engine and what joins them.

service = Service.open(Home.find(None))
turn = ask(service, Question("When do you open?", person="ann")).begin()
"""

import weakref
from typing import Any, Self

from chatbot.auth.access import Access
from chatbot.chat_settings import ChatSettings
from chatbot.engine import factory
from chatbot.engine.default_sampling import default_sampling
from chatbot.engine.engine_status import describe_engine, record_engine
from chatbot.engine.protocol import Engine, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers.worker_handle import WorkerHandle
from chatbot.exemplar_form.form_finder import FormFinder
from chatbot.known_bases import KnownBases
from chatbot.metrics import Metrics
from chatbot.model.base import Base
from chatbot.registry import Registry
from chatbot.rollout import POLL_SECONDS, Rollout
from chatbot.turn import Turn
from feedback.db.group_commit import GroupCommit
from feedback.matching.embedding import Embedder
from feedback.matching.remote_embedder import open_embedder
from feedback.settings import Home
from feedback.store import Store


class Service:
    """Holds store, registry, base and engine of one home, and closes them in order.

    ``rollout`` decides which adapter speaks. ``access`` says who may do what; unless the server
    sets another, it is that of a server on loopback. ``context_length`` is the number of tokens
    that prompt and answer share, ``default_sampling`` how answers are sampled where nobody asks for
    another. ``metrics`` are counted where things happen. ``group_commit`` stores questions and
    answers of many people in one transaction. ``embedder`` tells which questions are similar;
    None: the static one. ``form_finder`` knows in which form the base goes by approved answers.
    ``open_turns`` are the answers that may not be stored yet.
    """

    home: Home
    store: Store
    registry: Registry
    base: Base
    engine: Engine
    chat_settings: ChatSettings
    default_sampling: Sampling
    context_length: int
    access: Access
    metrics: Metrics
    group_commit: GroupCommit
    form_finder: FormFinder
    rollout: Rollout

    def __init__(
        self,
        home: Home,
        store: Store,
        base: Base,
        engine: Engine,
        *,
        chat_settings: ChatSettings,
        context_length: int,
        poll_seconds: float = POLL_SECONDS,
        embedder: Embedder | None = None,
    ) -> None:
        """Let the adapter in service speak, and follow promotions from then on."""
        self.home, self.store, self.base, self.engine = home, store, base, engine
        self.registry, self.embedder = Registry(store, home), embedder
        self.chat_settings, self.context_length = chat_settings, context_length
        self.default_sampling = default_sampling(chat_settings, base, context_length)
        self.access = Access(store, home.root)
        self.metrics = Metrics()
        self.group_commit = GroupCommit(store)
        self.form_finder = FormFinder(base, engine, home.forms)
        self.open_turns: weakref.WeakValueDictionary[str, Turn] = weakref.WeakValueDictionary()
        """By message id."""
        self.computed_by: dict[str, Any] = {}
        """How the engine computes the adapter that speaks, see `describe_engine`."""
        self.rollout = Rollout(
            self.registry,
            base,
            engine,
            self.metrics,
            poll_seconds,
            on_switch=self._record_engine,
        )

    @classmethod
    def open(
        cls,
        home: Home,
        base_name: str | None = None,
        revision: str | None = None,
        *,
        first: WorkerHandle | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> Self:
        """Load the base, start its engine and speak. ``first`` is a worker that was started early.

        Raises BaseError, UnknownBaseError, SettingsError, StoreError, EngineError.
        """
        chat, settings = ChatSettings.read(home), EngineSettings.read(home)
        embedder = open_embedder(home)
        store = Store(home.db)
        if base_name is not None:
            base_name = KnownBases(store).resolve(base_name, revision)
        base, engine = factory.start_engine(settings, base_name, revision, first)
        return cls(
            home,
            store,
            base,
            engine,
            chat_settings=chat,
            context_length=engine.max_length,
            poll_seconds=poll_seconds,
            embedder=embedder,
        )

    @property
    def speaking(self) -> str:
        """Return the id of the adapter that answers new turns."""
        return self.rollout.speaking

    @property
    def warning(self) -> str:
        """Return why a promoted adapter does not speak, in one line for people; "" if it does."""
        return self.rollout.warning

    def _record_engine(self) -> None:
        """Note how the engine computes the adapter that speaks now."""
        self.computed_by = describe_engine(self.engine.stats())
        record_engine(self.home, self.computed_by)

    def list_open_turns(self) -> list[Turn]:
        """Return the turns whose answers may not be stored yet; safe while others are added."""
        turns = [reference() for reference in self.open_turns.valuerefs()]
        return [turn for turn in turns if turn is not None]

    def close(self) -> None:
        """Stop following promotions, end every stream and store its answer, free the model."""
        self.rollout.close()
        self.form_finder.close()
        self.engine.close()
        self.group_commit.shutdown()
        for turn in self.list_open_turns():
            turn.close()
        if self.embedder is not None:
            self.embedder.close()
        self.store.close()
