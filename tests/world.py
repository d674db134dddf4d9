"""A base on servers of loopback, and what the in-process engine says with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot.engine.local.local_engine import EngineSettings, TorchEngine
from chatbot.engine.protocol import BASE, Request, Sampling, Stream
from chatbot.engine.remote.remote_engine import RemoteEngine
from chatbot.model.base import Base, encode, load_base
from tests import models
from tests.streams import ended
from tests.vllm import Vllm

QUESTION = "When do you open?"
LONG = Sampling(max_tokens=900)
Serve = Callable[..., Vllm]
Connect = Callable[..., RemoteEngine]


@dataclass
class World:
    """A tiny base, two adapters of it, and what the in-process engine says."""

    folder: Path
    base: Base
    adapters: list[Path]
    said: dict[str, Stream]

    def request(self, adapter: str = BASE, sampling: Sampling | None = None) -> Request:
        ids = encode(self.base.tokenizer, [{"role": "user", "content": QUESTION}])
        return Request(ids, adapter, sampling or Sampling(max_tokens=24))


def write_world(root: Path) -> World:
    folder = models.write_model(root / "base", max_position_embeddings=4096)
    base = load_base(str(folder))
    adapters = [models.write_adapter(root / "adapters", base, seed=seed) for seed in (1, 2)]
    world = World(folder, load_base(str(folder), weights=False), adapters, {})
    engine = TorchEngine(base, EngineSettings(threads=1))
    for adapter in adapters:
        engine.load(adapter.name, adapter)
    for voice in (BASE, *(adapter.name for adapter in adapters)):
        world.said[voice] = ended(engine.submit(world.request(voice)))
    engine.close()
    assert len({stream.text for stream in world.said.values()}) == 3
    return world


def trouble(engine: RemoteEngine, server: Vllm) -> Any:
    (found,) = [r["trouble"] for r in engine.stats()["replicas"] if r["url"] == server.url]
    return found
