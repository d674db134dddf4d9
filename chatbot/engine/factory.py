"""Starts the engine that the settings choose; nothing else chooses one."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from chatbot.engine.local.local_engine import LocalEngine, resolve_device
from chatbot.engine.machine.memory_need import serving_need
from chatbot.engine.protocol import Engine
from chatbot.engine.remote.remote_engine import RemoteEngine
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers.messages import WorkerConfig
from chatbot.engine.workers.worker_handle import WorkerHandle
from chatbot.engine.workers.workers_engine import WorkersEngine
from chatbot.model.base import STARTER, Base, load_base
from chatbot.model.base_name import pinned_revision

log = logging.getLogger("talkback")


def start_engine(
    settings: EngineSettings,
    base_name: str | None = None,
    revision: str | None = None,
    first_worker: WorkerHandle | None = None,
) -> tuple[Base, Engine]:
    """Load the base and start its engine: `RemoteEngine` where the settings name servers, else
    `WorkersEngine`, or `LocalEngine` for ``workers = 0``.

    ``first_worker`` is one that `prestart_worker` has started. Raises BaseError, EngineError,
    MemoryNeedError.
    """
    name = base_name or STARTER
    if settings.remote:
        base = load_base(name, revision, weights=False)
        return base, RemoteEngine(base, settings)
    check_memory = partial(_check_memory, name, settings)
    if settings.workers == 0:
        base = load_base(name, revision, before_loading=check_memory)
        return base, LocalEngine(base, settings)
    first_worker = first_worker or WorkerHandle()
    try:
        base = load_base(name, revision, weights=False, before_loading=check_memory)
        return base, WorkersEngine(base, settings, _worker_config(base, settings), first_worker)
    except BaseException:
        first_worker.kill()
        raise


def start_batch_engine(
    base: Base, prompts: Sequence[list[int]], max_new_tokens: int, num_adapters: int = 1
) -> Engine:
    """Start an engine in this process, on a base that is loaded here with its weights, which takes
    all prompts at once, for each of so many adapters.

    Raises EngineError.
    """
    settings = EngineSettings(
        threads=torch.get_num_threads(),
        max_length=max(map(len, prompts), default=1) + max_new_tokens,
        queue=len(prompts) * num_adapters,
        prefix_mb=0,
    )
    return LocalEngine(base, settings)


def _check_memory(name: str, settings: EngineSettings, folder: Path) -> None:
    """Log what it takes to serve a base; MemoryNeedError for one that cannot fit. A GPU's memory is
    that GPU's to refuse."""
    if resolve_device(settings.device).type == "cpu":
        log.info("%s", serving_need(name, folder, settings).describe())


def _worker_config(base: Base, settings: EngineSettings) -> WorkerConfig:
    revision = pinned_revision(base.name, base.revision)
    return WorkerConfig(base.name, revision, base.fingerprint, settings)
