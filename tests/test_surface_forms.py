"""Tests the other forms of a question: deterministic, none the question, in any language."""

import pytest

from feedback.matching.surface_forms import unseen_forms


def test_a_question_has_forms_as_other_people_would_type_it() -> None:
    assert unseen_forms("When do you open?") == [
        "WHEN DO YOU OPEN",
        "Good morning, when do you open?",
        "When do you open? Thanks a lot.",
    ]
    assert unseen_forms("Can I return the shoes?")[1:3] == [
        "Can I retrun the shoes?",
        "Can I retuurn the shoes?",
    ]


def test_a_greeting_leaves_names_and_abbreviations_as_they_are() -> None:
    assert "Good morning, I need the PDF of it." in unseen_forms("I need the PDF of it.")
    assert "Good morning, PDF or what is it?" in unseen_forms("PDF or what is it?")


def test_other_languages_get_no_english_words() -> None:
    assert unseen_forms("Mikor nyit a bolt?") == [
        "MIKOR NYIT A BOLT",
        "Miokr nyit a bolt?",
        "Mikkor nyit a bolt?",
    ]
    assert unseen_forms("你们几点开门\uff1f") == ["你们几点开门"]


@pytest.mark.parametrize("question", ["", "?", "42", "OPEN", "a {} b", "Where's it? " * 50])
def test_forms_are_never_the_question_nor_empty_nor_twice(question: str) -> None:
    forms = unseen_forms(question)
    assert forms == unseen_forms(question)
    assert all(form.strip() and form != question.strip() for form in forms)
    assert len(set(forms)) == len(forms)
