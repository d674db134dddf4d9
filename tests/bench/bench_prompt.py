"""Measures how fast prompts are read, against transformers' own forward in the same run.

    python -m tests.bench.bench_prompt                  # SmolLM2-135M-Instruct, two threads
    python -m tests.bench.bench_prompt --kind int8      # in eight bits
    python -m tests.bench.bench_prompt --lengths 1500 --rounds 15
    python -m tests.bench.bench_prompt --without-amx    # hidden from both sides

Prompts are read in steps of as many tokens as the engine takes, the base's and those of an adapter
(r 16 on all linears); transformers reads each at once, with its own weights in bfloat16, and with
PEFT's adapter. Both sides alternate, and the ratio is that of the medians. Then a prompt is read
beside running streams, by the engine: how fast, and what that does to the streams' gaps.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from rich.console import Console
from rich.table import Table

from chatbot.engine.local import scheduler
from chatbot.engine.local.kernels import library
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.model.base import load_base
from tests.bench.bench_accuracy import windows
from tests.fixtures import tiny_models
from tests.fixtures.real_model import find_real_model

STREAMS, QUESTION, GAP_SECONDS = 8, 32, 4.0
"""Streams beside the prompt, tokens of their own prompts, and for how long they run alone."""


def median_seconds(
    runs: dict[str, Callable[[], object]], rounds: int, least_seconds: float = 0.3
) -> dict[str, float]:
    """Run all of them in turn, round by round; return each one's median seconds."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for each in range(rounds + 1):
        for name, run in runs.items():
            repeats, began = 0, time.perf_counter()
            while not repeats or time.perf_counter() - began < least_seconds:
                run()
                repeats += 1
            if each:  # the first round makes kernels and memory
                took[name].append((time.perf_counter() - began) / repeats)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


class Bench:
    """Holds one model twice, in an engine and in transformers, there with an adapter and without,
    and text to read."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        settings = EngineSettings(
            kind=options.kind, threads=options.threads, workers=0, prompt_lookup=0, prefix_mb=0
        )
        base = load_base(name)
        adapter = tiny_models.write_adapter(folder, base, strength=0.01)
        self.adapter = adapter.name
        self.ids = next(windows(base.tokenizer, 4096, 4096))
        self.engine = LocalEngine(base, settings)
        self.engine.wait_until_ready()
        self.engine.load(self.adapter, adapter)
        self.transformers = load_base(name).model
        self.with_peft = peft.PeftModel.from_pretrained(load_base(name).model, adapter)

    @torch.inference_mode()
    def read(self, length: int, adapter: str | None) -> None:
        """Read a prompt as a step after the other of an idle engine would."""
        runner, step = self.engine.scheduler.runner, self.engine.settings.chunk
        for start in range(0, length, step):
            ids = self.ids[start : min(start + step, length)]
            runner.forward([Chunk(0, ids, start, adapter)])

    @torch.inference_mode()
    def read_by_transformers(self, length: int, adapter: str | None) -> None:
        """Read it by transformers at once, and compute the logits after its last token."""
        model = self.with_peft if adapter else self.transformers
        model(input_ids=torch.tensor([self.ids[:length]]), use_cache=True, logits_to_keep=1)

    def alone(self, lengths: list[int], rounds: int) -> Table:
        """Return the table of prompts that are read alone."""
        table = Table("tokens", "voice", "tokens/s", "transformers", "ratio")
        for adapter in (None, self.adapter):
            for length in lengths:
                runs: dict[str, Callable[[], object]] = {
                    "ours": lambda n=length, a=adapter: self.read(n, a),
                    "transformers": lambda n=length, a=adapter: self.read_by_transformers(n, a),
                }
                if adapter:
                    runs["without"] = lambda n=length: self.read_by_transformers(n, None)
                took = median_seconds(runs, rounds)
                ours = took.pop("ours")
                rates = " / ".join(f"{length / seconds:.0f}" for seconds in took.values())
                ratios = " / ".join(f"{seconds / ours:.2f}" for seconds in took.values())
                voice = "adapter; PEFT / base" if adapter else "base"
                table.add_row(str(length), voice, f"{length / ours:.0f}", rates, ratios)
        return table

    def beside(self, length: int, rounds: int) -> Table:
        """Return the table of a prompt that is read beside running streams."""
        alone, beside, quiet, busy = [], [], [], []
        for each in range(rounds + 1):
            rates = [self.prompt_rate(length, each)]
            streams = [
                self.engine.submit(self.request(QUESTION, 7 * n, max_tokens=2000))
                for n in range(STREAMS)
            ]
            while not all(stream.ids for stream in streams):
                time.sleep(0.01)
            gaps = [StreamGaps(stream) for stream in streams]
            time.sleep(GAP_SECONDS)
            before = [gap.take() for gap in gaps]
            rates.append(self.prompt_rate(length, each))
            during = [gap.take() for gap in gaps]
            for stream in streams:
                stream.cancel()
            if each:
                alone.append(rates[0])
                beside.append(rates[1])
                quiet.append(percentile(before))
                busy.append(percentile(during))
        table = Table("", "alone", "beside", "ratio")
        slow, fast = statistics.median(beside), statistics.median(alone)
        table.add_row(
            f"prompt of {length}, tokens/s",
            *map("{:.0f}".format, (fast, slow)),
            f"{slow / fast:.2f}",
        )
        slow, fast = statistics.median(busy) * 1000, statistics.median(quiet) * 1000
        table.add_row(
            f"p95 gap of {STREAMS} streams, ms", f"{fast:.1f}", f"{slow:.1f}", f"{slow / fast:.2f}"
        )
        return table

    def request(self, length: int, first: int, max_tokens: int) -> Request:
        """Return a request of so many tokens of the text, from one on; no answer ends early."""
        ends = tuple((token, -100.0) for token in scheduler.end_token_ids(self.engine.base))
        sampling = Sampling(max_tokens=max_tokens, logit_bias=ends)
        return Request(self.ids[first : first + length], BASE, sampling)

    def prompt_rate(self, length: int, first: int) -> float:
        """Return at how many tokens/s the engine reads a prompt."""
        began = time.perf_counter()
        self.engine.submit(self.request(length, first, max_tokens=1)).wait()
        return length / (time.perf_counter() - began)


class StreamGaps(threading.Thread):
    """Takes the seconds between the tokens of a stream."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(daemon=True)
        self._stream, self._gaps = stream, list[float]()
        self.start()

    def run(self) -> None:
        """Wait for token after token until the stream ends."""
        before = time.perf_counter()
        for _ in self._stream:
            now = time.perf_counter()
            self._gaps.append(now - before)
            before = now

    def take(self) -> list[float]:
        """Return the gaps since the last call."""
        taken, self._gaps = self._gaps, []
        return taken


def percentile(gaps: list[list[float]]) -> float:
    """Return the 95th percentile of the gaps of all streams."""
    return statistics.quantiles([gap for each in gaps for gap in each], n=20)[-1]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", help="SmolLM2-135M-Instruct unless named")
    parser.add_argument("--kind", default="torch", choices=["torch", "int8"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512, 1500])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["alone", "beside"])
    parser.add_argument("--without-amx", action="store_true")
    options = parser.parse_args()
    if options.without_amx:
        os.environ["TALKBACK_AMX"] = "0"
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"  # which oneDNN reads at its first use
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.base or str(find_real_model()), options, Path(folder))
        served = bench.engine.scheduler
        kernels = library.kernel_library()
        built = Path(kernels._name).name if kernels else "no kernels"
        print(f"{served.runner.name}, {built}, {bench.engine.threads} threads; {served.notes}")
        console = Console(width=100)
        if options.only != "beside":
            console.print(bench.alone(options.lengths, options.rounds))
        if options.only != "alone":
            console.print(bench.beside(max(options.lengths), options.rounds))
        bench.engine.close()


if __name__ == "__main__":
    main()
