"""Measures how fast other CPU engines decode, as ratios to ours in the same run.

    pip install llama-cpp-python gguf openvino-genai
    python -m tests.bench.bench_peers                      # 135M shape, one thread each
    python -m tests.bench.bench_peers --threads 2
    python -m tests.bench.bench_peers --base FOLDER        # a real model, with each's perplexity
    python -m tests.bench.bench_peers --exporter /path/to/optimum-cli --keep /tmp/models

Same weights, random unless named, prompts of 64 tokens, answers of 48, greedy, ends off. Each has a
process of its own, so that none inherits another's threads; the rounds interleave them, and the
median of each round's ratio counts. A peer that is not installed, or dies, is left out by name.
optimum-intel, which writes OpenVINO's model, wants another transformers than ours: hence the path.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from chatbot.model.base import load_tokenizer
from tests.bench.bench_accuracy import windows
from tests.bench.bench_engine import shape_135m
from tests.bench.peers import (
    MOST,
    LlamaCpp,
    OpenVino,
    Ours,
    Peer,
    lacks,
    perplexity,
    write_gguf,
    write_openvino,
)

OURS = ("ours, torch bf16", "ours, int8")
COUNTS = (1, MOST)
Make = Callable[..., Peer]
Rates = dict[str, dict[int, list[float]]]
"""Engine -> streams -> tokens/s, round by round."""


class Worker:
    """A process that holds one engine and measures when told to."""

    def __init__(self, make: Make, *args: object) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(make, *args))
        self.rate(1)  # what runs for the first time is slow

    def rate(self, streams: int) -> float:
        return self._pool.submit(_rate, streams).result()

    def perplexity(self, parts: list[list[int]]) -> float:
        return self._pool.submit(_perplexity, parts).result()

    def close(self) -> None:
        self._pool.shutdown()


_peer: Peer | None = None


def _start(make: Make, *args: object) -> None:
    global _peer
    _peer = make(*args)


def _rate(streams: int) -> float:
    assert _peer is not None
    return _peer.rate(streams)


def _perplexity(parts: list[list[int]]) -> float:
    assert _peer is not None
    return perplexity(_peer, parts)


def workers(
    model: Path, made: Path, threads: int, exporter: str
) -> tuple[dict[str, Worker], dict[str, str]]:
    """The engines that are here, and why the others are not; ``made`` holds the peers' models."""
    here = {
        OURS[0]: Worker(Ours, model, threads, "torch"),
        OURS[1]: Worker(Ours, model, threads, "int8"),
    }
    absent = {}
    for kind in ("bf16", "q8_0"):
        if why := lacks("llama.cpp", exporter):
            absent[f"llama.cpp {kind}"] = why
        else:
            file = kept(made / f"{kind}.gguf", write_gguf, model, kind)
            try:
                here[f"llama.cpp {kind}"] = Worker(LlamaCpp, file, threads)
            except BrokenProcessPool:
                absent[f"llama.cpp {kind}"] = "died of its first step"
    if why := lacks("OpenVINO", exporter):
        absent["OpenVINO int8"] = why
    else:
        folder = kept(made / "openvino", write_openvino, model, exporter)
        here["OpenVINO int8"] = Worker(OpenVino, folder, threads)
    return here, absent


def kept(out: Path, write: Callable[..., object], *args: object) -> Path:
    """What an earlier run has left, or is written now, whole or not at all."""
    if not out.exists():
        part = out.with_name(f"part-{out.name}")
        write(part, *args)
        part.rename(out)
    return out


def measure(engines: dict[str, Worker], rounds: int) -> Rates:
    """Every engine at every count, round by round."""
    found: Rates = {name: {count: [] for count in COUNTS} for name in engines}
    for _ in range(rounds):
        for count in COUNTS:
            for name, engine in engines.items():
                found[name][count].append(engine.rate(count))
    return found


def ratio(found: Rates, name: str, against: str, count: int) -> float:
    """The median over the rounds of one engine's rate against another's."""
    pairs = zip(found[name][count], found[against][count], strict=True)
    return statistics.median(a / b for a, b in pairs)


def report(found: Rates, texts: dict[str, float], absent: dict[str, str]) -> str:
    """The table as Markdown, with the perplexities that were measured."""
    heads = [head for n in COUNTS for head in (f"{n} stream{'s'[: n > 1]}", "/ torch", "/ int8")]
    heads += ["perplexity"] if texts else []
    lines = [f"| decode, tok/s | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, rates in found.items():
        cells = []
        for count in COUNTS:
            cells.append(f"{statistics.median(rates[count]):.0f}")
            cells += [f"{ratio(found, name, ours, count):.2f}x" for ours in OURS]
        cells += [f"{texts[name]:.3f}"] if texts else []
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {name} | {why} |{' |' * (len(heads) - 1)}" for name, why in absent.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, help="folder of a Llama; random weights unless named")
    parser.add_argument("--tokens", type=int, default=4096, help="of the perplexity's text")
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exporter", default="optimum-cli", help="optimum-intel's command")
    parser.add_argument("--keep", help="folder in which the models outlive the run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp, ExitStack() as running:
        made = Path(args.keep or temp)
        model = args.base or kept(made / "135m", shape_135m)
        engines, absent = workers(model, made, args.threads, args.exporter)
        for engine in engines.values():
            running.callback(engine.close)
        found = measure(engines, args.rounds)
        parts = [*windows(load_tokenizer(str(model)), args.tokens, 512)] if args.base else []
        texts = {name: engine.perplexity(parts) for name, engine in engines.items() if parts}
    print(json.dumps([found, texts]) if args.json else report(found, texts, absent))


if __name__ == "__main__":
    main()
