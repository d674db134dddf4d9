"""Measures in which form approved answers in a prompt make a base give them word for word.

    python -m tests.bench.bench_exemplar_form                  # SmolLM2-135M-Instruct, three seeds
    python -m tests.bench.bench_exemplar_form --seeds 0 --exemplars right --forms turns "best twice"

Of 20 intents of Bitext's customer support one phrasing each is approved; then 120 other phrasings
are asked, with nothing trained. The exemplars are those that `find_exemplars` finds (questions for
which it finds none are left out, for there all forms are one); or, to measure the form alone, the
right one as the best of three ("right"), or three of which none is right ("wrong"). What is no form
of the product's stands here, for comparison. The baseline is the text before the question.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table

from chatbot.engine.batch import submit_prompts, wait_for_texts
from chatbot.engine.factory import start_batch_engine
from chatbot.engine.protocol import BASE, Sampling
from chatbot.exemplar_form.forms import ChatMessages, ExemplarForm, write_question
from chatbot.model.base import Base, load_base
from chatbot.model.chat_template import encode
from evaluation.metrics import chrf
from feedback.exemplars import find_exemplars
from feedback.review.decisions import decide
from feedback.similarity import trigram_similarity
from feedback.store import Store
from tests.bench.bench_learning import MAX_TOKENS
from tests.fixtures.conversations import add_answer
from tests.fixtures.phrasings import draw_phrasings
from tests.fixtures.real_model import find_real_model

Pairs = Sequence[tuple[str, str]]
"""Approved (question, answer) pairs, the best first."""
BASELINE = "in question"
SYSTEM = "Answer with one of the approved answers, word for word, where it fits."


def _turns(question: str, shown: Pairs) -> ChatMessages:
    """Write each pair as two turns, in the order given."""
    return write_question("turns", question, shown[::-1])


def _in_system(question: str, shown: Pairs) -> ChatMessages:
    pairs = "".join(f"\nQ: {asked}\nA: {answer}" for asked, answer in shown)
    system = {"role": "system", "content": f"Approved answers:{pairs}\n\n{SYSTEM}"}
    return [system, *_turns(question, [])]


OTHER_FORMS: Mapping[str, Callable[[str, Pairs], ChatMessages]] = {
    "turns, best first": _turns,
    "turns, best only": lambda question, shown: _turns(question, shown[:1]),
    "turns, best last and twice": lambda question, shown: _turns(
        question, [*shown[::-1], *shown[:1]]
    ),
    "best thrice": lambda question, shown: _turns(question, [*shown[:1]] * 3),
    "in system message": _in_system,
}
FORMS = (BASELINE, *(form for form in get_args(ExemplarForm) if form != BASELINE), *OTHER_FORMS)


def write_prompt(form: str, question: str, shown: Pairs) -> ChatMessages:
    """Return the messages of a prompt in one of the forms."""
    if form in OTHER_FORMS:
        return OTHER_FORMS[form](question, shown)
    return write_question(next(f for f in get_args(ExemplarForm) if f == form), question, shown)


def find_pairs(taught: Pairs, questions: Sequence[str]) -> list[Pairs]:
    """Return what is found for each question in a store in which these pairs are approved."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "talkback.db")
        for question, answer in taught:
            decide(store, add_answer(store, question), "rita", "correct", answer)
        found = [
            [(one.question, one.answer) for one in find_exemplars(store, question)]
            for question in questions
        ]
        store.close()
    return found


def near_pairs(taught: Pairs, question: str, right: tuple[str, str], kind: str) -> Pairs:
    """Return three pairs whose questions are most alike: with the right one first, or without."""
    others = sorted(
        (pair for pair in taught if pair != right),
        key=lambda pair: -trigram_similarity(pair[0], question),
    )
    return [right, *others[:2]] if kind == "right" else others[:3]


def measure(base: Base, seed: int, exemplars: str, forms: Sequence[str]) -> list[list[str]]:
    """Return a row of the table for each form."""
    phrasings = draw_phrasings(seed)
    taught = [(first.question, first.answer) for first, *_ in phrasings.values()]
    asked = [
        (other.question, pair)
        for pair, (_, *others) in zip(taught, phrasings.values(), strict=True)
        for other in others
    ]
    if exemplars == "found":
        shown = find_pairs(taught, [question for question, _ in asked])
    else:
        shown = [near_pairs(taught, question, right, exemplars) for question, right in asked]
    kept = [(*one, pairs) for one, pairs in zip(asked, shown, strict=True) if pairs]
    known = {answer for _, answer in taught}
    rows = []
    for form in forms:
        messages = [write_prompt(form, question, pairs) for question, _, pairs in kept]
        answers = generate(base, messages)
        right = [answer == pair[1] for answer, (_, pair, _) in zip(answers, kept, strict=True)]
        near = fmean(
            chrf(answer, pair[1]) for answer, (_, pair, _) in zip(answers, kept, strict=True)
        )
        others = sum(answer in known for answer in answers) - sum(right)
        row = [exemplars, str(seed), form, f"{sum(right)}/{len(kept)}", str(others), f"{near:.1f}"]
        print(*row, sep=" | ", flush=True)
        rows.append(row)
    return rows


def generate(base: Base, messages: Sequence[ChatMessages]) -> list[str]:
    """Return the base's greedy answers, by the engine that serves."""
    prompts = [encode(base.tokenizer, one) for one in messages]
    engine = start_batch_engine(base, prompts, MAX_TOKENS)
    try:
        streams = submit_prompts(engine, prompts, BASE, Sampling(max_tokens=MAX_TOKENS))
        return [text.strip() for text in wait_for_texts(streams)]
    finally:
        engine.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", help="SmolLM2-135M-Instruct unless named")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--exemplars", nargs="+", default=["found", "right"])
    parser.add_argument("--forms", nargs="+", default=list(FORMS[:3]), choices=FORMS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(options.base or str(find_real_model()))
    columns = ("exemplars", "seed", "form", "right, word for word", "another's answer", "chrF")
    table = Table(*columns)
    for exemplars in options.exemplars:
        for seed in options.seeds:
            for row in measure(base, seed, exemplars, options.forms):
                table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
