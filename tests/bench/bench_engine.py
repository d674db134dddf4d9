"""Measures how fast the engine decodes, against one `generate` thread in the same run.

    python -m tests.bench.bench_engine                     # SmolLM2-135M-Instruct
    python -m tests.bench.bench_engine --base 135m         # its shape with random weights
    python -m tests.bench.bench_engine --base starter      # the model that comes along
    python -m tests.bench.bench_engine --kind int8         # in eight bits
    python -m tests.bench.bench_engine --rounds 9 --json
    python -m tests.bench.bench_engine --busy              # beside other work: see below

The engine is the one that `talkback serve` would start, one worker or more, but that it guesses
nothing: random weights repeat themselves, and what guesses bring is `bench_lookup`'s to tell.
`--busy` measures one in this process on one thread, per CPU-second of it. A round measures all
rows, and the median of the rounds' ratios counts, so that a noisy machine is noisy for all alike.
Each round loads the weights anew, on both sides: where in memory they come to lie makes a process
faster or slower by a fifth, for as long as it lives.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from chatbot.engine import factory
from chatbot.engine.local import scheduler
from chatbot.engine.local.local_engine import resolve_device
from chatbot.engine.progress import Progress
from chatbot.engine.protocol import BASE, Engine, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers import worker_handle, worker_process
from chatbot.engine.workers.workers_engine import WorkersEngine
from chatbot.model.base import STARTER, Base, load_base
from chatbot.server import ENVIRONMENT
from tests.fixtures import tiny_models
from tests.fixtures.real_model import find_real_model

PROMPT, ANSWER = 64, 48
TURNS = 20
FIRST = ("first token, turn 1", f"first token, turn {TURNS}")
clock = time.perf_counter


def shape_135m(folder: Path) -> Path:
    """The SmolLM2-135M shape with random weights and a tiny tokenizer."""
    return tiny_models.write_model(
        folder,
        "llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.02,
        eos_token_id=0,  # OpenVINO GenAI wants one
    )


def prompt(seed: int) -> list[int]:
    """Random tokens that end no answer."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(10, 300, (PROMPT,), generator=rng).tolist()


def generated(base: Base, prompt_ids: list[int], most: int, **until: Any) -> tuple[int, float]:
    """How many tokens one `generate` says, at most so many, and the seconds that it takes."""
    ids = torch.tensor([prompt_ids], device=base.model.device)
    begin = clock()
    out = base.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=most,
        do_sample=False,
        pad_token_id=0,
        **until,
    )
    return out.shape[1] - ids.shape[1], clock() - begin


def generate_rate(base: Base) -> float:
    """Decode tokens/s of one `generate`: the time of the first token is taken off."""
    (_, all_of_it), (_, first) = (
        generated(base, prompt(0), tokens, min_new_tokens=tokens) for tokens in (ANSWER, 1)
    )
    return (ANSWER - 1) / (all_of_it - first)


def endless(pipe: Connection, progress: Progress) -> None:
    """A worker's process, in which no token ends an answer: random weights would say it anytime."""
    scheduler.end_token_ids = lambda _: frozenset()
    worker_process.run_worker(pipe, progress)  # its own: this is another process


def start(name: str, kind: str, threads: int = 0, workers: int | None = None) -> Engine:
    """The engine that is measured, once all its workers are there."""
    # The workers' processes read it.
    os.environ.update(ENVIRONMENT | worker_process.OPENMP_ENVIRONMENT)
    scheduler.end_token_ids = lambda _: frozenset()
    worker_handle.worker_process.run_worker = endless
    settings = EngineSettings(kind=kind, threads=threads, workers=workers, prompt_lookup=0)
    _, engine = factory.start_engine(settings, name)
    if isinstance(engine, WorkersEngine):
        while engine.stats()["workers"] < engine.target_workers:
            time.sleep(0.1)
    return engine


def engine_rate(engine: Engine, streams: int, adapters: list[str]) -> float:
    """Decode tokens/s over all streams, counted while all of them are running."""
    # The first ones run on while the last prompts are read in small pieces beside them.
    sampling = Sampling(max_tokens=ANSWER + streams * PROMPT)
    running = [
        engine.submit(Request(prompt(n), adapters[n % len(adapters)], sampling))
        for n in range(streams)
    ]
    while not all(stream.ids or stream.finish for stream in running):
        time.sleep(0.005)
    begin, first = clock(), [len(stream.ids) for stream in running]
    goals = [n + ANSWER for n in first]
    while not any(
        each.finish or len(each.ids) >= goal for each, goal in zip(running, goals, strict=True)
    ):
        time.sleep(0.005)
    end, last = clock(), [len(stream.ids) for stream in running]
    for stream in running:
        stream.cancel()
        stream.wait()
    return (sum(last) - sum(first)) / (end - begin)


def first_tokens(engine: Engine, adapter: str) -> tuple[float, float]:
    """Seconds to the first token of turn 1 and of turn 20 of one conversation, as long as the model
    has room for it."""
    size = min(PROMPT, engine.stats()["max_length"] // TURNS * 4 // 5)
    ids: list[int] = []
    took = []
    for turn in range(TURNS):
        ids += prompt(1000 + turn)[:size]
        begin = clock()
        engine.submit(Request([*ids], adapter, Sampling(max_tokens=1))).wait()
        took.append(clock() - begin)
        answer = engine.submit(Request([*ids], adapter, Sampling(max_tokens=size // 4)))
        answer.wait()
        ids += answer.ids
    return took[0], took[-1]


def measure(
    name: str, adapters: dict[str, Path], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Each row's tokens/s, and the seconds of `FIRST`, round by round."""
    found: dict[str, list[float]] = {}
    alone = {"threads": 1, "workers": 0} if args.busy else {}
    for number in range(args.rounds):
        base = load_base(name)
        base.model.to(resolve_device(EngineSettings().device))  # where the engine computes
        engine = start(name, args.kind, **alone)
        for folder in adapters.values():
            engine.load(folder.name, folder)
        table = rows(engine, list(adapters))
        pair = [list(adapters)[(number + n) % len(adapters)] for n in range(2)]
        first_tokens(engine, pair[0])
        for run in table.values():
            run()  # kernels are made, threads are tried and memory is there before it counts
        found.setdefault("generate", []).append(generate_rate(base))
        for row, run in table.items():
            found.setdefault(row, []).append(run())
        for row, seconds in zip(FIRST, first_tokens(engine, pair[1]), strict=True):
            found.setdefault(row, []).append(seconds)
        engine.close()
    return found


def rows(engine: Engine, names: list[str]) -> dict[str, Callable[[], float]]:
    """What is measured, in the table's order."""
    table: dict[str, Callable[[], float]] = {}
    for streams in (1, 4, 16):
        table[f"{streams} streams, base"] = lambda n=streams: engine_rate(engine, n, [BASE])
    for streams in (1, 16):
        table[f"{streams} streams, one adapter"] = lambda n=streams: engine_rate(
            engine, n, names[:1]
        )
    table["16 streams, 4 adapters"] = lambda: engine_rate(engine, 16, names[:4])
    table["16 streams, base + 3 adapters"] = lambda: engine_rate(engine, 16, [BASE, *names[:3]])
    return table


def ratio(found: dict[str, list[float]], row: str, against: str) -> float:
    """The median over the rounds of one row's rate against another's."""
    return statistics.median(a / b for a, b in zip(found[row], found[against], strict=True))


def report(found: dict[str, list[float]]) -> str:
    """The table as Markdown."""
    lines = ["| decode | tok/s | vs generate |", "|---|---|---|"]
    for row, rates in found.items():
        if row in FIRST:
            continue
        rate, times = statistics.median(rates), ratio(found, row, "generate")
        lines.append(f"| {row} | {rate:.0f} | {times:.2f}x |")
    mixed = ratio(found, "16 streams, 4 adapters", "16 streams, one adapter")
    lines.append(f"\n16 streams on 4 adapters run at {mixed:.2f} of the speed on one.")
    early, late = (1000 * statistics.median(found[row]) for row in FIRST)
    times = ratio(found, FIRST[1], FIRST[0])
    lines.append(f"First token: turn 1 {early:.0f} ms, turn {TURNS} {late:.0f} ms: {times:.2f}x.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", help="135m, starter, or any; else SmolLM2-135M-Instruct")
    parser.add_argument("--kind", default="torch", choices=["torch", "int8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="one thread, per CPU-second")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.busy:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temp:
        known: dict[str | None, Callable[[], str]] = {
            None: lambda: str(find_real_model()),
            "135m": lambda: str(shape_135m(Path(temp) / "135m")),
            "starter": lambda: STARTER,
        }
        name = known.get(args.base, lambda: args.base)()
        base = load_base(name)
        made = [
            tiny_models.write_adapter(Path(temp), base, seed=n, strength=0.01) for n in range(4)
        ]
        del base
        found = measure(name, {folder.name: folder for folder in made}, args)
    print(json.dumps(found) if args.json else report(found))


if __name__ == "__main__":
    main()
