"""Swaps adapters under running streams: none may fail, none may mix two adapters.

    python -m tests.bench.bench_swaps                      # a tiny model, 200 swaps
    python -m tests.bench.bench_swaps --base starter --swaps 50
    python -m tests.bench.bench_swaps --workers 0          # the engine in this process, float32

Sixteen streams run all the time. Each swap loads the next adapter, sends new streams to it and
unloads the one before, whose streams end on it. Every answer is held against what its adapter
says alone.
"""

import argparse
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path

from chatbot.engine import factory
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import Engine, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.model.base import STARTER, Base, load_base
from chatbot.model.chat_template import encode
from tests.fixtures import tiny_models

STREAMS = 16
VOICES = STREAMS + 4
"""So many that an adapter has left memory when its turn comes again, and is really loaded."""
QUESTIONS = ("When do you open?", "Where is my order?", "Can I return the shoes?", "Hello")
Asked = tuple[str, str, Stream]


def ask(engine: Engine, base: Base, question: str, adapter: str) -> Stream:
    """A greedy answer of a fixed length at most."""
    ids = encode(base.tokenizer, [{"role": "user", "content": question}])
    return engine.submit(Request(ids, adapter, Sampling(max_tokens=32)))


def alone(base: Base, folders: list[Path]) -> dict[tuple[str, str], str]:
    """What each adapter says to each question with nobody beside it."""
    engine = LocalEngine(base, EngineSettings(threads=1, slots=1, prefix_mb=0))
    answers = {}
    for folder in folders:
        engine.load(folder.name, folder)
        for question in QUESTIONS:
            answers[question, folder.name] = "".join(ask(engine, base, question, folder.name))
    engine.close()
    return answers


def start(base: Base, name: str, workers: int) -> Engine:
    """The engine that swaps, with all its workers."""
    settings = EngineSettings(threads=1, slots=STREAMS, workers=workers)
    if not workers:
        return LocalEngine(base, settings)
    _, engine = factory.start_engine(settings, name)
    while engine.stats()["workers"] < workers:
        time.sleep(0.1)
    return engine


def swap(
    engine: Engine, base: Base, folders: list[Path], swaps: int
) -> tuple[list[Asked], list[float]]:
    """All streams that ran, and how long each load took that found its adapter gone."""
    asked: list[Asked] = []
    running: deque[Stream] = deque()
    took = []
    for turn in range(swaps):
        folder, before = folders[turn % VOICES], folders[(turn - 1) % VOICES]
        gone = folder.name not in engine.stats()["adapters"]
        begin = time.perf_counter()
        engine.load(folder.name, folder)
        if gone:
            took.append(time.perf_counter() - begin)
        if turn:
            engine.unload(before.name)
        while len(running) >= STREAMS:
            running.popleft().wait()
        while len(running) < STREAMS:
            question = QUESTIONS[len(asked) % len(QUESTIONS)]
            running.append(ask(engine, base, question, folder.name))
            asked.append((question, folder.name, running[-1]))
        running = deque(stream for stream in running if stream.finish is None)
    for stream in running:
        stream.wait()
    engine.close()
    return asked, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default="tiny", help="tiny, starter, or any model")
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        tiny = tiny_models.write_model(Path(temp) / "tiny")
        named = {"tiny": str(tiny), "starter": STARTER}
        name = named.get(args.base, args.base)
        base = load_base(name, dtype="float32" if args.workers == 0 else "auto")
        folders = [
            tiny_models.write_adapter(Path(temp), base, seed=n) for n in range(1, VOICES + 1)
        ]
        expected = alone(base, folders)
        asked, took = swap(start(base, name, args.workers), base, folders, args.swaps)
    failed = sum(stream.finish not in ("stop", "length") for _, _, stream in asked)
    mixed = sum(stream.text != expected[question, adapter] for question, adapter, stream in asked)
    print(f"{args.swaps} swaps under {STREAMS} running streams, {len(asked)} answers:")
    each = 1000 * statistics.median(took)
    print(f"{failed} failed, {mixed} mixed; {len(took)} loads, {each:.0f} ms each.")


if __name__ == "__main__":
    main()
