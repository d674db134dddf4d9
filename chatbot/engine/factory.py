"""Which engine speaks: the settings choose, here and nowhere else."""

from pathlib import Path

from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import Engine
from chatbot.engine.remote.remote_engine import RemoteEngine
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers.messages import Order
from chatbot.engine.workers.worker_handle import Worker
from chatbot.engine.workers.workers_engine import WorkersEngine
from chatbot.model.base import STARTER, Base, load_base


def start(
    settings: EngineSettings,
    base_name: str | None = None,
    revision: str | None = None,
    first: Worker | None = None,
) -> tuple[Base, Engine]:
    """The base and its engine: other servers where the settings name some, else torch in workers
    or in this process. ``first`` is a worker that was made `early`.

    Raises BaseError, EngineError.
    """
    name = base_name or STARTER
    if settings.remote:
        base = load_base(name, revision, weights=False)
        return base, RemoteEngine(base, settings)
    if settings.workers == 0:
        base = load_base(name, revision)
        return base, LocalEngine(base, settings)
    first = first or Worker()
    try:
        base = load_base(name, revision, weights=False)
        return base, WorkersEngine(base, settings, _order(base, name, settings), first)
    except BaseException:
        first.kill()
        raise


def _order(base: Base, name: str, settings: EngineSettings) -> Order:
    """A folder has no revision that it could be asked for."""
    revision = None if Path(name).expanduser().is_dir() else base.revision
    return Order(name, revision, base.fingerprint, settings)
