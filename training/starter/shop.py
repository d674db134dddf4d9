"""Reads shop.toml: what the fictional shop knows, how people ask for it, and how facts change.

python -m training.starter.shop  prints every topic with its answer and two ways to ask.

held_out.toml has questions that nothing trains on, written by somebody who had not seen those of
shop.toml. Where the two are alike all the same, it is the training line that goes.
"""

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("shop.toml")
HELD_OUT = Path(__file__).with_name("held_out.toml")
FACT = re.compile(r"\[(.+?)\]")
ALTERNATIVES = re.compile(r"\(([^()]*\|[^()]*)\)")
SLOT = re.compile(r"\{(\w+)\}")

# What facts are changed into.
ONSETS = [*"bcdfghjklmnprstvwyz", "br", "ch", "cl", "dr", "fl", "gr", "qu", "sh", "st", "th", "tr"]
VOWELS = [*"aeiou", *"aeiou", "ai", "ea", "ee", "oo", "ou", "y"]
CODAS = ["", "", "", "", "ck", "d", "ff", "l", "m", "n", "ng", "p", "r", "rt", "s", "st", "t", "x"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
CITIES = ["Bath", "Oxford", "Derby", "Exeter", "Norwich", "Durham", "Swansea", "Carlisle", "Truro"]
WORD_PAIRS = ["blue desk", "silk ribbon", "old barn", "side door", "red folder", "next evening"]


@dataclass(frozen=True)
class LineSplit:
    """Holds lines that train and lines that are held out."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @classmethod
    def of(cls, items: Sequence[str]) -> "LineSplit":
        """Put every fifth item aside, beginning with the fourth, so the choice never changes."""
        return cls(
            train=tuple(item for n, item in enumerate(items) if n % 5 != 3),
            held_out=tuple(item for n, item in enumerate(items) if n % 5 == 3),
        )

    def lines(self, held_out: bool) -> tuple[str, ...]:
        """Return the held-out lines or the training lines."""
        return self.held_out if held_out else self.train


@dataclass(frozen=True)
class Topic:
    """Describes one thing that people ask about; the answer has its facts in [brackets]."""

    name: str
    marked_answer: str
    questions: LineSplit
    follow_up_answers: dict[str, str]


@dataclass(frozen=True)
class Shop:
    """Holds all of shop.toml; `fillers` are the lists behind {thing}, {place} and {who}."""

    topics: tuple[Topic, ...]
    small_talk: tuple[Topic, ...]
    outside: Topic
    follow_ups: dict[str, tuple[str, ...]]
    fillers: dict[str, LineSplit]
    alternative_answers: tuple[str, ...]
    thing_answers: tuple[str, ...]
    openings: tuple[str, ...]


@cache
def load_shop() -> Shop:
    """Parse shop.toml once."""
    data, held_out = (
        tomllib.loads(path.read_text(encoding="utf-8")) for path in (SOURCE, HELD_OUT)
    )
    outside = data["outside"]
    return Shop(
        topics=parse_topics(data["topics"], held_out["topics"]),
        small_talk=parse_topics(data["small_talk"], held_out["small_talk"]),
        outside=parse_topic("outside", outside, held_out["outside"]),
        follow_ups={kind: tuple(parse_lines(text)) for kind, text in data["follow_ups"].items()},
        fillers={
            "thing": LineSplit.of(parse_items(outside["things"])),
            "place": LineSplit.of(parse_items(outside["places"])),
            "who": LineSplit.of(parse_items(outside["people"])),
        },
        alternative_answers=tuple(parse_lines(data["exemplars"]["answers"])),
        thing_answers=tuple(parse_lines(data["exemplars"]["things"])),
        openings=tuple(data["exemplars"]["openings"]),
    )


def parse_topics(tables: dict[str, Any], held_out: dict[str, Any]) -> tuple[Topic, ...]:
    """Parse all topics of one kind."""
    return tuple(parse_topic(name, entry, held_out[name]) for name, entry in tables.items())


def parse_topic(name: str, entry: dict[str, Any], held_out: dict[str, Any]) -> Topic:
    """Parse a topic from its table in either file."""
    train, aside = (tuple(parse_lines(table["questions"])) for table in (entry, held_out))
    return Topic(name, entry["answer"], LineSplit(train, aside), entry.get("then", {}))


def parse_lines(text: str) -> list[str]:
    """Split a multi-line string into its lines, without blank ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_items(text: str) -> list[str]:
    """Split a comma-separated list that may run over several lines."""
    return [item.strip() for item in text.split(",") if item.strip()]


def remove_fact_marks(marked: str) -> str:
    """Return the answer without the brackets around its facts."""
    return FACT.sub(r"\1", marked)


def extract_facts(marked: str) -> list[str]:
    """Return the facts that a right answer must contain."""
    return FACT.findall(marked)


def expand_template(template: str, rng: random.Random, fillers: Mapping[str, Sequence[str]]) -> str:
    """Choose one of every (a|b) and fill every {slot}."""
    text = ALTERNATIVES.sub(lambda m: rng.choice(m[1].split("|")), template)
    return SLOT.sub(lambda m: fill_slot(m[1], rng, fillers), text)


def fill_slot(slot: str, rng: random.Random, fillers: Mapping[str, Sequence[str]]) -> str:
    """Draw a word for one {slot}."""
    if slot == "number":
        return str(rng.randrange(2, 999))
    if slot == "nonsense":
        return " ".join(invent_word(rng) for _ in range(rng.randint(1, 3)))
    return rng.choice(fillers[slot])


def invent_word(rng: random.Random) -> str:
    """Invent a word that doesn't exist: copying must not depend on known words."""
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        for _ in range(rng.randint(1, 3))
    )


def invent_name(rng: random.Random) -> str:
    """Invent a capitalised name, mostly of one word."""
    return " ".join(invent_word(rng).capitalize() for _ in range(rng.choice([1, 1, 2])))


def change_facts(marked: str, rng: random.Random) -> str:
    """Replace every fact of a marked answer by a random one of its kind; return it unmarked."""
    return FACT.sub(lambda m: change_fact(m[1], rng), marked)


def change_fact(fact: str, rng: random.Random) -> str:
    """Draw another fact of the same kind: address, phone number, price, per cent, time, name."""
    if "@" in fact:
        return f"{invent_word(rng)}@{invent_word(rng)}.example"
    if ".example" in fact:
        return f"{invent_word(rng)}.{invent_word(rng)}.example"
    if re.fullmatch(r"0[\d ]+", fact):
        return f"0{rng.randrange(100, 999)} {rng.randrange(100, 999)} {rng.randrange(1000, 9999)}"
    if fact.startswith("£"):
        return f"£{rng.randrange(1, 150)}" + rng.choice(["", "", f".{rng.randrange(10, 99)}"])
    if fact.endswith("%"):
        return f"{rng.randrange(2, 95)}%"
    if re.search(r"\d [ap]m", fact):
        minutes = rng.choice(["", ":15", ":30", ":45"])
        return f"{rng.randrange(1, 13)}{minutes} {rng.choice(['am', 'pm'])}"
    if re.fullmatch(r"[A-Z]+\d+", fact):
        return f"{invent_word(rng).upper()}{rng.randrange(1, 100)}"
    if re.search(r"\d", fact):
        return change_span(fact, rng)
    return change_name(fact, rng)


def change_span(fact: str, rng: random.Random) -> str:
    """Draw another span of time ("6 weeks", "3 to 9 days") or count ("7 instalments")."""
    low, unit = rng.randrange(2, 90), fact.split()[-1]
    if unit in {"days", "weeks", "months", "hours", "years", "minutes"}:
        unit = rng.choice(["days", "weeks", "months", "hours", "years", "minutes", "working days"])
    return f"{low} to {low + rng.randrange(1, 9)} {unit}" if " to " in fact else f"{low} {unit}"


def change_name(fact: str, rng: random.Random) -> str:
    """Draw another day, city, name or pair of words, now and then one that doesn't exist."""
    if fact in WEEKDAYS:
        return rng.choice(WEEKDAYS)
    if not fact[0].isupper():
        return rng.choice([*WORD_PAIRS, f"{invent_word(rng)} {invent_word(rng)}"])
    return rng.choice([rng.choice(CITIES), invent_name(rng), invent_name(rng)])


def main() -> None:
    """Print the shop for a reader."""
    for entry in load_shop().topics:
        print(f"{entry.name}: {remove_fact_marks(entry.marked_answer)}")
        print(*(f"    {question}" for question in entry.questions.train[:2]), sep="\n")


if __name__ == "__main__":
    main()
