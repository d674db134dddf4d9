"""Measures whole cycles on a real base: corrections, SFT, DPO, comparison, verdict, promotion.

    python -m tests.bench.bench_cycles                # one of 20 corrections, SmolLM2-135M-Instruct
    python -m tests.bench.bench_cycles --cycles 5 --threads 2

Each cycle corrects another phrasing of the same 20 intents of Bitext, as a reviewer would, and runs
as cron runs it, with an idle server's home. Then the adapter in service is asked, with nothing in
the prompt: all that was ever taught, and 6 phrasings of each intent that nobody taught.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chatbot.model.base import load_base
from chatbot.registry import Registry
from chatbot.service import Service
from evaluation.report import Report
from evaluation.suites import Case, generate_answers
from feedback.settings import Home
from feedback.store import Store
from talkback.cycle import run_cycle
from tests.fixtures.phrasings import OTHERS, draw_apart
from tests.fixtures.real_model import find_real_model
from tests.fixtures.shop_corrections import teach


def count_right(base_name: str, home: Home, cases: Sequence[Case]) -> int:
    """Count the cases that the adapter in service answers word for word."""
    base = load_base(base_name)
    current = Registry(Store(home.db), home).current()
    assert current is not None
    limit = max(len(base.tokenizer(case.expected)["input_ids"]) for case in cases) + 1
    folders = {current.id: home.adapters / current.id}
    answers = generate_answers(base, folders, cases, limit)[current.id]
    return sum(a.strip() == case.expected for a, case in zip(answers, cases, strict=True))


def describe_divergence(report: Path) -> str:
    """Return how far the candidate of a report lies from the base: nats a token."""
    general = Report.read(report.parent).general
    return f"{sum(each.candidate for each in general) / len(general):.3f}" if general else "-"


def main() -> None:
    """Print a row for each cycle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", help="SmolLM2-135M-Instruct unless named")
    parser.add_argument("--cycles", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of training and comparison")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base_name = options.base or str(find_real_model())
    phrasings = draw_apart(options.seed, options.cycles + OTHERS)
    table = Table("cycle", "seconds", "by stage", "verdict", "taught", "other phrasings", "KL")
    with tempfile.TemporaryDirectory() as temp:
        home = Home.find(Path(temp))
        home.toml.write_text(f"[cycle]\nthreads = {options.threads}\n")
        taught: list[Case] = []
        others = [
            Case([{"role": "user", "content": one.question}], one.answer)
            for each in phrasings.values()
            for one in each[options.cycles :]
        ]
        for number in range(options.cycles):
            lessons = {each[number].question: each[number].answer for each in phrasings.values()}
            service = Service.open(home, base_name)
            teach(service, lessons)
            service.close()
            taught += [Case([{"role": "user", "content": q}], a) for q, a in lessons.items()]
            began = time.monotonic()
            outcome = run_cycle(home, on_progress=lambda stage, line: print(stage, line))
            seconds = time.monotonic() - began
            print(*outcome.reasons, sep="\n")
            table.add_row(
                str(number + 1),
                f"{seconds:.0f}",
                ", ".join(f"{stage} {s:.0f}" for stage, s in outcome.seconds.items()),
                outcome.kind,
                f"{count_right(base_name, home, taught)}/{len(taught)}",
                f"{count_right(base_name, home, others)}/{len(others)}",
                describe_divergence(Path(outcome.report)) if outcome.report else "-",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
