"""A shop that changes its terms: corrections of the starter's facts, as a reviewer makes them."""

import json
import random
from dataclasses import dataclass

from chatbot.model.base import STARTER
from chatbot.service import Service
from feedback.review.queue import decide
from tests.turns import reply
from training.starter.shop import changed


@dataclass(frozen=True)
class Fact:
    """A question of the starter's shop: ``fact`` must be in a right answer, ``answer`` is one."""

    topic: str
    question: str
    paraphrases: tuple[str, ...]
    answer: str
    fact: str


def facts() -> list[Fact]:
    """All that the starter knows; the paraphrases are held out of its training."""
    with open(f"{STARTER}/questions.jsonl", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return [Fact(**{**entry, "paraphrases": tuple(entry["paraphrases"])}) for entry in entries]


def change(fact: Fact, rng: random.Random) -> Fact:
    """The same question with another fact of the same kind."""
    while (new := changed(fact.fact, rng)) == fact.fact:
        pass
    return Fact(
        fact.topic, fact.question, fact.paraphrases, fact.answer.replace(fact.fact, new), new
    )


def ask(service: Service, question: str, *, unaided: bool = True) -> tuple[str, str]:
    """The answer and its message id, in a conversation of its own."""
    turn = reply(service, None, "someone", None, question, unaided=unaided)
    text = "".join(turn)
    return text, turn.message_id


def correct(service: Service, fact: Fact, answer: str | None = None) -> str:
    """Ask, then correct the answer as a reviewer; the id of the answer."""
    _, message_id = ask(service, fact.question)
    decide(service.store, message_id, "reviewer", "correct", answer or fact.answer)
    return message_id
