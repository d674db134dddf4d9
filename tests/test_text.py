"""Tests how text of people and models is prepared for the pages."""

import pytest

from chatbot.pages.text import escape_markdown, person_name, unescape_markdown
from feedback.ids import new_id


@pytest.mark.parametrize("text", ["a <b>c</b>", "![x](y)", "x < y", "`<i>` and <i>", "wow! [1]"])
def test_text_shown_for_editing_comes_back_as_it_was(text: str) -> None:
    assert unescape_markdown(escape_markdown(text)) == text


def test_who_has_no_name_is_shown_with_a_short_one_of_their_own() -> None:
    first, second = new_id("person"), new_id("person")
    assert person_name(first) == f"visitor {first[-4:]}"
    assert person_name(second) not in (person_name(first), first)


@pytest.mark.parametrize("name", ["ann", "person-ann", "Ann O'Neill", "ann@example.com"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    assert person_name(name) == name


def test_a_name_of_any_length_leaves_room() -> None:
    assert person_name("a" * 64) == "a" * 31 + "…"
