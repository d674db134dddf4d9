"""Measures what prompt lookup brings a single stream, and what it costs where it cannot.

    python -m tests.bench.bench_lookup                  # the starter model
    python -m tests.bench.bench_lookup --kind int8
    python -m tests.bench.bench_lookup --rounds 5

The starter answers questions that are held out of its training: with a reviewer's answer to such a
question in the prompt, beside two about other things, and without any. Decode only: the first
token is taken off. The rounds interleave all ways; the median of each round's ratio counts.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from functools import partial

import torch

from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import STARTER, Base, end_token_ids, load_base
from chatbot.prompt import fit_prompt
from tests.bench.bench_engine import generated
from tests.fixtures.shop_corrections import load_facts, with_new_fact

MOST = 64
KINDS = ("repeats an approved answer", "is the model's own")
Rates = dict[tuple[str, str], list[float]]


def prompts(base: Base, shown: int) -> list[list[int]]:
    """One of each topic, with so many approved answers in it, up to 3, the first of which fits."""
    rng, known = random.Random(3), load_facts()
    found = []
    for fact in known:
        new = with_new_fact(fact, rng)
        examples = [(new.question, new.answer)]
        others = [other for other in known if other is not fact]
        examples += [(other.question, other.answer) for other in rng.sample(others, 2)]
        ids, _ = fit_prompt(
            base.tokenizer, "", [], fact.paraphrases[0], examples[:shown], 900, form="in question"
        )
        found.append(ids)
    return found


def engine_rate(engine: LocalEngine, asked: list[list[int]]) -> float:
    """Decode tokens/s of one stream after the other."""
    tokens = milliseconds = 0.0
    for ids in asked:
        stream = engine.submit(Request(ids, BASE, Sampling(max_tokens=MOST)))
        stream.wait()
        tokens += len(stream.ids) - 1
        milliseconds += (stream.total_ms or 0) - (stream.first_token_ms or 0)
    return 1000 * tokens / milliseconds


def generate_rate(base: Base, asked: list[list[int]]) -> float:
    """The same of `generate`."""
    tokens = seconds = 0.0
    last = sorted(end_token_ids(base))
    for prompt in asked[::5]:
        (_, first), (count, all_of_it) = (
            generated(base, prompt, most, eos_token_id=last) for most in (1, MOST)
        )
        tokens += count - 1
        seconds += all_of_it - first
    return tokens / seconds


def measure(kind: str, threads: int, rounds: int) -> Rates:
    """Tokens/s, round by round, of each kind of answer and each way to decode."""
    base = load_base(STARTER)
    asked = dict(zip(KINDS, (prompts(base, 3), prompts(base, 0)), strict=True))
    engines = {
        name: LocalEngine(
            load_base(STARTER), EngineSettings(kind=kind, threads=threads, prompt_lookup=most)
        )
        for name, most in (("without guesses", 0), ("with guesses", 8))
    }
    ways: dict[str, Callable[[list[list[int]]], float]] = {"generate": partial(generate_rate, base)}
    for name, engine in engines.items():
        engine.wait_until_ready()
        ways[name] = partial(engine_rate, engine)
    rates: Rates = {(answer, way): [] for answer in KINDS for way in ways}
    for number in range(rounds + 1):  # the first only warms up
        for answer, way in rates:
            rate = ways[way](asked[answer])
            if number:
                rates[answer, way].append(rate)
    for engine in engines.values():
        engine.close()
    return rates


def report(rates: Rates) -> str:
    """The table as Markdown."""
    lines = ["| the answer | decoded | tok/s | vs generate |", "|---|---|---|---|"]
    for (answer, way), found in rates.items():
        base = rates[answer, "generate"]
        times = statistics.median(a / b for a, b in zip(found, base, strict=True))
        lines.append(f"| {answer} | {way} | {statistics.median(found):.0f} | {times:.2f}x |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", default="torch", choices=["torch", "int8"])
    parser.add_argument("--threads", type=int, default=1, help="of the engine and of generate")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(report(measure(args.kind, args.threads, args.rounds)))


if __name__ == "__main__":
    main()
