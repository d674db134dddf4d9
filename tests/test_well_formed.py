"""Tests what becomes of text that no database, tokenizer or search index can hold."""

import json
from pathlib import Path

import pytest

from feedback.db.well_formed import all_well_formed, to_well_formed
from feedback.exemplars import find_approved, find_exemplars
from feedback.messages import NotFoundError
from feedback.review.decisions import decide
from feedback.store import Store
from tests.fixtures.conversations import add_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Größe 😀 中文", "Größe 😀 中文"),
        ("", ""),
        ("a\ud83d", "a\ufffd"),
        ("\ude00b", "\ufffdb"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("a\0b\0", "a\ufffdb\ufffd"),
        ("\udcff", "\ufffd"),
        ("\r\n\t\u2028\uffff", "\r\n\t\u2028\uffff"),
    ],
)
def test_what_cannot_be_held_is_replaced_and_the_rest_is_kept(text: str, expected: str) -> None:
    assert to_well_formed(text) == expected


def test_keys_and_nested_values_are_replaced_and_numbers_are_not() -> None:
    value = {"a\0": ["\ud83d", {"b": ("c", 1, None, True)}]}
    assert all_well_formed(value) == {"a\ufffd": ["\ufffd", {"b": ["c", 1, None, True]}]}


def test_the_store_holds_and_finds_only_what_is_well_formed(tmp_path: Path) -> None:
    store = Store(tmp_path / "talkback.db")
    id = add_answer(store, "Open\0 on \ud83d Sunday?", "From\0 nine \ud83d.", person="ann\ud83d")
    assert store.message(id).content == "From\ufffd nine \ufffd."
    store.add_feedback(id, "ann\ud83d", "comment", {"text": "Hm\ud83d\0"}, "key\ud83d")
    (given,) = store.feedback_on(id)
    assert given.value == {"text": "Hm\ufffd\ufffd"} and given.person == "ann\ufffd"
    decide(store, id, "rita\ud83d", "correct", "At ten\ud83d\0.", "note\0")
    (indexed,) = store.rows("select question, answer from approved_fts")
    assert tuple(indexed) == ("Open\ufffd on \ufffd Sunday?", "At ten\ufffd\ufffd.")
    (raw,) = store.rows("select value from feedback")
    assert json.loads(raw["value"]) == {"text": "Hm\ufffd\ufffd"}


def test_to_look_for_what_cannot_be_held_finds_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "talkback.db")
    decide(store, add_answer(store, "Open on Sunday?"), "rita", "correct", "From ten.")
    for text in ("\ud83d", "\0", "\0 \ud83d on", 'ab"\0'):
        assert find_approved(store, text) is None and find_exemplars(store, text) == []
        with pytest.raises(NotFoundError):
            store.message(text)


def test_a_question_of_a_megabyte_is_looked_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "talkback.db")
    decide(store, add_answer(store, "Open on Sunday?"), "rita", "correct", "From ten.")
    for words in (" ".join(f"word{number}" for number in range(100_000)), "x" * 1_000_000):
        assert find_approved(store, words) is None and find_exemplars(store, words) == []
