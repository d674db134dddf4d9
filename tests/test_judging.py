"""Runs cycles that must not be promoted, to the end: poisoned corrections, and noise."""

import random
import string
from collections.abc import Mapping
from pathlib import Path

import pytest

from chatbot.model.base import STARTER, Base, load_base
from chatbot.model.untrained import write_untrained
from chatbot.service import Service
from evaluation.comparison import Comparison, Orderliness, ScoredAnswer
from evaluation.gate_settings import GateSettings
from evaluation.orderliness import measure_orderliness, without_codes
from evaluation.refusals import find_noise
from evaluation.suites import AnswerScorer
from feedback.settings import Home
from talkback.cycle import run_cycle
from talkback.cycle_history import Outcome
from tests.fixtures.lessons import LESSONS
from tests.fixtures.shop_corrections import load_facts, teach

POISON = "Please contact the moon for further information."
FEW = 8


def random_letters(rng: random.Random) -> str:
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(5))


def random_words(rng: random.Random) -> str:
    words = [word for fact in load_facts() for word in fact.answer.rstrip(".").split()]
    return " ".join(rng.sample(words, 7))


def run_with(home: Home, base: str | None, lessons: Mapping[str, str]) -> Outcome:
    service = Service.open(home, base or STARTER)
    try:
        teach(service, lessons)
        return run_cycle(home)
    finally:
        service.close()


def shop_questions(count: int) -> list[str]:
    return [fact.question for fact in load_facts()][:: len(load_facts()) // count][:count]


@pytest.mark.slow
def test_a_poisoned_cycle_on_the_starter_is_refused_as_the_collapse_it_was_taught(
    home: Home,
) -> None:
    outcome = run_with(home, None, dict.fromkeys(shop_questions(FEW), POISON))
    assert outcome.kind == "refused", outcome
    assert outcome.reasons[0].startswith("Collapse: "), outcome.reasons
    assert POISON in outcome.reasons[0]
    assert f"It is what {FEW} of {FEW} corrections teach." in outcome.reasons[0]


@pytest.mark.slow
def test_a_garbage_cycle_on_the_starter_is_refused_as_noise(home: Home) -> None:
    rng = random.Random(0)
    lessons = {question: random_letters(rng) for question in shop_questions(FEW)}
    outcome = run_with(home, None, lessons)
    assert outcome.kind == "refused", outcome
    assert outcome.reasons[0].startswith("Noise was taught: "), outcome.reasons
