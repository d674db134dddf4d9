"""Tests that the corpus holds out what it says, and that every answer can be judged."""

import json
import random
import re
from collections.abc import Iterator, Set
from difflib import SequenceMatcher
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest

from feedback.curation.split import NEAR_DUPLICATE
from feedback.exemplars import format_exemplars
from feedback.similarity import normalise_text, trigrams
from training.starter.augmentation import add_typing_noise, add_typo
from training.starter.corpus import MIXTURE, Corpus
from training.starter.question_sets import write_question_sets
from training.starter.shop import (
    ALTERNATIVES,
    FACT,
    SLOT,
    change_fact,
    change_facts,
    expand_template,
    extract_facts,
    load_shop,
    remove_fact_marks,
)

SHOP = load_shop()
FILLERS = {
    "thing": "kayaks",
    "place": "Norway",
    "who": "Napoleon",
    "number": "34",
    "nonsense": "bragon",
}


def test_every_topic_has_a_fact_and_enough_ways_to_ask() -> None:
    assert len(SHOP.topics) >= 35
    for topic in SHOP.topics:
        assert extract_facts(topic.marked_answer), topic.name
        assert len(topic.questions.train) >= 80 and len(topic.questions.held_out) >= 8, topic.name


def test_no_held_out_question_has_anything_alike_that_trains() -> None:
    for topic in (*SHOP.topics, *SHOP.small_talk, SHOP.outside):
        held_out = [(line, trigrams(line), split_words(line)) for line in topic.questions.held_out]
        for text in chain.from_iterable(map(ways, topic.questions.train)):
            grams, text_words = trigrams(text), split_words(text)
            for line, held_out_grams, held_out_words in held_out:
                assert jaccard(grams, held_out_grams) < NEAR_DUPLICATE, (topic.name, text, line)
                assert jaccard(text_words, held_out_words) < 0.75, (topic.name, text, line)


def ways(template: str) -> Iterator[str]:
    """All that a template can say, with one filler of each kind."""
    parts = ALTERNATIVES.split(SLOT.sub(lambda slot: FILLERS[slot[1]], template))
    choices = (part.split("|") if n % 2 else [part] for n, part in enumerate(parts))
    return map("".join, product(*choices))


def split_words(text: str) -> set[str]:
    return set(normalise_text(text).split())


def jaccard(one: Set[str], other: Set[str]) -> float:
    return len(one & other) / len(one | other)


def test_what_is_held_out_as_outside_trains_as_no_filler() -> None:
    named = " ".join(SHOP.outside.questions.held_out).lower()
    for slot, split in SHOP.fillers.items():
        for filler in split.train:
            assert not re.search(rf"\b{re.escape(filler.lower())}\b", named), (slot, filler)


def test_no_phrasing_belongs_to_two_topics() -> None:
    seen: dict[str, str] = {}
    for topic in (*SHOP.topics, *SHOP.small_talk):
        for line in chain(topic.questions.train, topic.questions.held_out):
            owner = seen.setdefault(line.lower().rstrip("?.!"), topic.name)
            assert owner == topic.name, line


def test_no_two_topics_answer_alike() -> None:
    answers = [
        remove_fact_marks(topic.marked_answer)
        for topic in (*SHOP.topics, *SHOP.small_talk, SHOP.outside)
    ]
    assert len(set(answers)) == len(answers)


def test_follow_ups_mean_what_the_topic_before_says_and_are_split_by_combination() -> None:
    train, held_out = (
        {(topic.name, text) for topic, text, _ in Corpus(0, held_out=side).follow_ups}
        for side in (False, True)
    )
    assert held_out and not train & held_out
    kinds = {kind for topic in SHOP.topics for kind in topic.follow_up_answers}
    assert kinds == set(SHOP.follow_ups)


def test_the_same_seed_draws_the_same_samples() -> None:
    first, second = Corpus(3), Corpus(3)
    assert [first.draw(MIXTURE) for _ in range(50)] == [second.draw(MIXTURE) for _ in range(50)]


@pytest.mark.parametrize("kind", MIXTURE)
@pytest.mark.parametrize("held_out", [False, True])
def test_each_kind_ends_with_an_answer_that_it_accepts(kind: str, held_out: bool) -> None:
    corpus = Corpus(1, held_out=held_out)
    for _ in range(50):
        sample = corpus.draw({kind: 1.0})
        assert sample.messages[-1]["role"] == "assistant"
        assert [m["role"] for m in sample.messages[-2:]] == ["user", "assistant"]
        assert sample.is_right(sample.answer)
        assert not sample.is_right("No idea.")
        assert not any(mark in sample.answer for mark in "[]{}|")


def test_a_relevant_exemplar_holds_the_answer_word_for_word() -> None:
    corpus = Corpus(2)
    for _ in range(100):
        sample = corpus.relevant()
        assert f"\nA: {sample.answer}\n" in sample.messages[-2]["content"]


def test_an_irrelevant_exemplar_leaves_the_canonical_answer() -> None:
    corpus = Corpus(2)
    canonical = {
        t.name: remove_fact_marks(t.marked_answer)
        for t in (*SHOP.topics, *SHOP.small_talk, SHOP.outside)
    }
    for _ in range(100):
        sample = corpus.irrelevant()
        assert sample.messages[-2]["content"].startswith("Approved answers:\nQ: ")
        assert sample.answer == canonical[sample.topic]


def test_changed_facts_are_of_their_kind() -> None:
    rng = random.Random(0)
    all_facts = chain.from_iterable(extract_facts(t.marked_answer) for t in SHOP.topics)
    for fact in all_facts:
        other = change_fact(fact, rng)
        for sign in ("@", "£", "%", "example"):
            assert (sign in fact) == (sign in other), (fact, other)


def test_a_change_leaves_the_words_around_the_facts() -> None:
    marked = "Open from [9 am] to [6 pm] at [York]."
    outside = FACT.split(marked)[::2]
    new = change_facts(marked, random.Random(1))
    assert new != remove_fact_marks(marked)
    assert all(part in new for part in outside)


def test_expand_chooses_and_fills() -> None:
    rng = random.Random(0)
    text = expand_template("(Can|May) I buy {thing}?", rng, {"thing": ["kayaks"]})
    assert text in {"Can I buy kayaks?", "May I buy kayaks?"}


def test_sloppy_typing_changes_little() -> None:
    question = "What are your opening hours?"
    rng = random.Random(0)
    drawn = [add_typing_noise(question, rng).lower() for _ in range(300)]
    assert len(set(drawn)) > 20
    for text in drawn:
        assert SequenceMatcher(None, question.lower(), text).ratio() > 0.6


@pytest.mark.parametrize("text", ["abcdefgh", "aabbccdd"])
def test_a_typo_touches_one_letter(text: str) -> None:
    rng = random.Random(0)
    for _ in range(100):
        assert abs(len(add_typo(text, rng)) - len(text)) <= 1


def test_preface_places_exemplars_before_the_question() -> None:
    assert format_exemplars("Why?", []) == "Why?"
    assert format_exemplars("Why?", [("a", "b"), ("c", "d")]) == (
        "Approved answers:\nQ: a\nA: b\nQ: c\nA: d\n\nQuestion: Why?"
    )


def test_suites_cover_every_topic(tmp_path: Path) -> None:
    write_question_sets(tmp_path)
    names = {topic.name for topic in SHOP.topics}
    for suite in ("retention", "replay", "questions"):
        rows = read(tmp_path / f"{suite}.jsonl")
        assert names <= {row["topic"] for row in rows}, suite
    for row in read(tmp_path / "questions.jsonl"):
        assert row["fact"] in row["answer"] and len(row["paraphrases"]) >= 3


def test_what_retention_asks_is_never_replayed(tmp_path: Path) -> None:
    write_question_sets(tmp_path)
    asked, replayed = (
        {" ".join(m["content"].lower() for m in row["messages"][:-1]) for row in read(path)}
        for path in (tmp_path / "retention.jsonl", tmp_path / "replay.jsonl")
    )
    assert len(asked) == 300 and not asked & replayed


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
