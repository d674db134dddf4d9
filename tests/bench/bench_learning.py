"""Measures what corrections teach a base, and what it forgets: the experiment behind the recipe.

    python -m tests.bench.bench_learning                  # SmolLM2-135M-Instruct
    python -m tests.bench.bench_learning --seeds 0 1 2 --recipe '{"replay": 3}'
    python -m tests.bench.bench_learning --without-replay  # replays nothing
    python -m tests.bench.bench_learning --choices  # and DPO, against what the base had answered
    python -m tests.bench.bench_learning --phrasings 5  # 100 corrections, as after five cycles

The data are public (`public_data.py`). 20 intents of Bitext's customer support are corrected, one
phrasing each, with nothing in the prompt afterwards; then 120 other phrasings are asked. What is
forgotten is measured on what nothing trained on: how far the probabilities lie from the base's
along its own answers to 160 questions of MT-Bench and Vicuna and 200 of IFEval, and how many of the
checkable questions that the base answers right the adapter no longer does.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from chatbot.general.answers import answer_general_prompts
from chatbot.general.split import split_answers
from chatbot.model.base import Base, load_base
from chatbot.model.untrained import write_untrained
from evaluation.metrics import holds_one_of
from evaluation.suites import AnswerScorer, Case, generate_answers
from feedback.curation.row_files import Record, read_rows
from tests.fixtures import public_data
from tests.fixtures.checkable_questions import checkable_questions
from tests.fixtures.phrasings import OTHERS, draw_apart, draw_phrasings
from tests.fixtures.real_model import find_real_model
from training.recipe import Recipe
from training.train import TrainingData, publish_adapter, train_lora

INSTRUCTIONS, MAX_TOKENS = 200, 64


def draw_cases(seed: int, phrasings: int) -> tuple[list[Case], list[Case]]:
    """Return the taught questions, so many of each of 20 intents, and 6 others of each that are
    not near them."""
    drawn = draw_phrasings(seed) if phrasings == 1 else draw_apart(seed, phrasings + OTHERS)
    cases = [[ask(one.question, one.answer) for one in each] for each in drawn.values()]
    taught = [case for each in cases for case in each[:phrasings]]
    return taught, [case for each in cases for case in each[phrasings:]]


def ask(question: str, answer: str = "") -> Case:
    """Return a question as a dialogue of its own."""
    return Case([{"role": "user", "content": question}], answer)


def general_questions() -> list[Case]:
    """Return the first questions of MT-Bench and of Vicuna, and some of IFEval."""
    files = ("mt_bench_question.jsonl", "vicuna_bench_question.jsonl")
    folder = public_data.data_folder("mt_bench")
    turns = [row["turns"][0] for name in files for row in read_rows(folder / name)]
    instructions = read_rows(public_data.data_folder("ifeval") / "input_data.jsonl")
    sample = random.Random(0).sample(instructions, INSTRUCTIONS)
    return [ask(text) for text in [*turns, *(row["prompt"] for row in sample)]]


def ask_base(base: Base, asked: Sequence[Case]) -> list[str]:
    """Return what the base answers to each question."""
    with tempfile.TemporaryDirectory() as work:
        untrained = write_untrained(base, Path(work))
        answers = generate_answers(base, {untrained.name: untrained}, asked, MAX_TOKENS)
    return answers[untrained.name]


def to_row(case: Case) -> Record:
    """Return a correction as it trains."""
    return {"prompt": case.prompt, "completion": [{"role": "assistant", "content": case.expected}]}


def to_pair(case: Case, rejected: str) -> Record:
    """Return a correction as it trains by DPO, against the answer that it replaced."""
    sides = {"chosen": case.expected, "rejected": rejected}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": case.prompt, **answers}


def measure(
    name: str, seed: int, recipe: Recipe, *, phrasings: int, without_replay: bool, choices: bool
) -> list[str]:
    """Teach the corrections, and return a row of the table."""
    base = load_base(name)
    taught, others = draw_cases(seed, phrasings)
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        checkable = [ask(*each) for each in checkable_questions()]
        questions = [*general_questions(), *checkable]
        of_base = ask_base(base, questions)
        known = pick_right(checkable, of_base[-len(checkable) :])
        answered = zip(questions[: -len(checkable)], of_base, strict=False)
        kept = [Case(case.prompt, text) for case, text in answered if text]
        replay = []
        if not without_replay:
            general = Path(tempfile.gettempdir()) / "talkback-general"
            rows, _ = split_answers(read_rows(answer_general_prompts(base, "", general)))
            replay = [
                {"prompt": prompt, "completion": [answer], "by_base": True}
                for *prompt, answer in (row["messages"] for row in rows)
            ]
        pairs = []
        if choices:
            wrong = ask_base(base, taught)
            pairs = [to_pair(*both) for both in zip(taught, wrong, strict=True)]
        training = TrainingData("bench", [to_row(case) for case in taught], replay, pairs)
        recipe = recipe.model_copy(update={"seed": seed})
        began = time.monotonic()
        metrics = train_lora(base, training, recipe, work / "draft", print)
        seconds = time.monotonic() - began
        adapter = publish_adapter(work / "draft", work, base, training, recipe, metrics)
        limit = max(len(base.tokenizer(case.expected)["input_ids"]) for case in taught) + 1
        folders = {adapter.name: adapter}
        answers = generate_answers(base, folders, [*taught, *others], limit)[adapter.name]
        right = [
            answer.strip() == case.expected
            for answer, case in zip(answers, [*taught, *others], strict=True)
        ]
        lessons = {case.expected for case in taught}
        some = sum(answer.strip() in lessons for answer in answers[len(taught) :])
        still = generate_answers(base, folders, known, MAX_TOKENS)[adapter.name]
        still_right = pick_right(known, still)
        for case, answer in zip(known, still, strict=True):
            if case not in still_right:
                print(f"lost: {case.question} ({case.expected}): {answer}")
        scorer = AnswerScorer(base, folders)
        divergences = scorer.divergences([adapter.name], kept)[adapter.name]
        scorer.close()
    return [
        str(seed),
        f"{metrics['sft']['steps']}, {seconds:.0f}",
        f"{sum(right[: len(taught)])}/{len(taught)}",
        f"{sum(right[len(taught) :])}/{len(others)} ({some})",
        f"{sum(divergences) / len(divergences):.3f}",
        f"{len(known) - len(still_right)} of {len(known)}",
    ]


def pick_right(cases: Sequence[Case], answers: Sequence[str]) -> list[Case]:
    """Return the checkable questions that are answered right."""
    both = zip(cases, answers, strict=True)
    return [case for case, answer in both if holds_one_of(answer, [case.expected])]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", help="SmolLM2-135M-Instruct unless named")
    parser.add_argument("--recipe", type=json.loads, default={}, help="[training] as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--phrasings", type=int, default=1, help="corrections of each intent")
    parser.add_argument("--without-replay", action="store_true")
    parser.add_argument("--choices", action="store_true", help="DPO after SFT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as training does
    columns = ("learnt", "other phrasings (a taught answer)", "KL", "lost of known answers")
    table = Table("seed", "steps, seconds", *columns)
    recipe = Recipe(**options.recipe)
    for seed in options.seeds:
        name = options.base or str(find_real_model())
        row = measure(
            name,
            seed,
            recipe,
            phrasings=options.phrasings,
            without_replay=options.without_replay,
            choices=options.choices,
        )
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
