"""Tries in which form a base goes by approved answers, on some that no base can know.

Each form is asked the same questions greedily; the form that is right more often wins.
"""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatbot.exemplar_form.forms import FORMS, ChatMessages, ExemplarForm, write_question
from feedback.similarity import trigram_similarity

TRIAL = Path(__file__).with_name("trial.toml")
SAME, ALIKE = 0.9, 0.6
"""Trigram similarity from which an answer is the expected one, and from which it is taken from an
exemplar that does not fit."""
SHOWN = 3
"""Exemplars with each question, as many as a prompt has where nobody sets another number."""


@dataclass(frozen=True)
class TrialCase:
    """Holds a question with (question, answer) pairs, the best first, and the answer that is right;
    None: any but theirs."""

    question: str
    exemplars: Sequence[tuple[str, str]]
    expected: str | None

    def is_right(self, answer: str) -> bool:
        """Tell whether an answer is the expected one, or taken from no exemplar where none fits."""
        if self.expected is not None:
            return trigram_similarity(answer, self.expected) >= SAME
        return all(trigram_similarity(answer, given) < ALIKE for _, given in self.exemplars)


def read_cases() -> list[TrialCase]:
    """Return the questions. The right exemplar is the best one, but for every fourth question the
    second: so well finding does at least."""
    trial = tomllib.loads(TRIAL.read_text(encoding="utf-8"))
    rows = trial["answers"]
    pairs = [(row["question"], row["answer"]) for row in rows]
    pairs += pairs[: SHOWN - 1]
    found = []
    for number, row in enumerate(rows):
        best, second, *others = pairs[number : number + SHOWN]
        shown = [second, best, *others] if number % 4 == 3 else [best, second, *others]
        found.append(TrialCase(row["asked"], shown, row["answer"]))
    strangers = enumerate(trial["strangers"])
    found += [TrialCase(text, pairs[SHOWN * n :][:SHOWN], None) for n, text in strangers]
    return found


def count_right(ask: Callable[[ChatMessages], str]) -> dict[ExemplarForm, int]:
    """Return for each form how many answers are right; ``ask`` has the base answer a prompt."""
    cases = read_cases()
    return {
        form: sum(
            case.is_right(ask(write_question(form, case.question, case.exemplars)))
            for case in cases
        )
        for form in FORMS
    }


def choose_form(right: dict[ExemplarForm, int]) -> ExemplarForm:
    """Return the form with most right answers, of equal ones the first in `FORMS`."""
    return max(FORMS, key=lambda form: right[form])
