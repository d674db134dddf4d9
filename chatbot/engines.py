"""Which engine speaks: the settings choose, here and nowhere else."""

from chatbot.base import STARTER, Base, load_base
from chatbot.inprocess.batching import EngineSettings, TorchEngine
from chatbot.remote.engine import RemoteEngine


def start(
    settings: EngineSettings, base_name: str | None = None, revision: str | None = None
) -> tuple[Base, TorchEngine | RemoteEngine]:
    """The base and its engine: other servers where the settings name some, else this process.

    Raises BaseError, EngineError.
    """
    remote = settings.kind == "remote" or (settings.kind == "auto" and bool(settings.urls))
    base = load_base(base_name or STARTER, revision, weights=not remote)
    if remote:
        return base, RemoteEngine(base, settings)
    return base, TorchEngine(base, settings)
