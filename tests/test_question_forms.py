"""Tests which other forms of a question train beside it."""

import pytest

from feedback.matching.surface_forms import unseen_forms
from feedback.similarity import normalise_text
from training.question_forms import form_rows, trained_forms


def row(question: str, answer: str) -> dict[str, object]:
    """A correction as it trains, after an earlier turn."""
    before = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    prompt = [*before, {"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def asked(rows: list[dict[str, object]]) -> list[str]:
    """The questions of the rows."""
    return [row["prompt"][-1]["content"] for row in rows]  # type: ignore[index]


@pytest.mark.parametrize(
    "question",
    [
        "I don't know how to cancel my order.",
        "Wann öffnet ihr am Sonntag?",
        "東京の天気は?",
        "สวัสดีครับ?",
    ],
)
def test_forms_are_always_the_same_and_differ_from_the_question(question: str) -> None:
    forms = trained_forms(question)
    assert forms == trained_forms(question)
    assert len(set(forms)) == len(forms) > 0
    assert question not in forms and all(form.strip() for form in forms)


@pytest.mark.parametrize(
    "question",
    ["I don't know how to cancel my order.", "Wann öffnet ihr am Sonntag?", "Open late?"],
)
def test_no_form_that_judges_an_adapter_trains(question: str) -> None:
    assert not set(trained_forms(question)) & set(unseen_forms(question))


def test_english_is_greeted_and_framed_and_other_languages_are_not() -> None:
    assert "how to cancel order" in trained_forms("I don't know how to cancel my order.")
    german = trained_forms("Wann öffnet ihr am Sonntag?")
    assert not any(word in " ".join(german) for word in ("Hi", "please", "how to"))
    assert "wann öffnet ihr am sonntag" in german


def test_what_the_question_is_about_stays_in_every_form() -> None:
    assert all("open" in form.casefold() for form in trained_forms("When do you open?"))


def test_rows_come_in_layers_each_with_its_answer_and_history() -> None:
    rows = [row("Where is my parcel now?", "On its way."), row("Can I return the shoes?", "Yes.")]
    forms = form_rows(rows)
    assert [form["completion"] for form in forms[:2]] == [one["completion"] for one in rows]
    assert all(form["prompt"][:-1] == rows[0]["prompt"][:-1] for form in forms)  # type: ignore[index]
    assert not set(asked(forms)) & set(asked(rows))


def test_what_could_be_two_taught_questions_is_no_form() -> None:
    rows = [row("Where is my order?", "On its way."), row("where is my order", "Ask us by mail.")]
    texts = {normalise_text(text) for text in asked(form_rows(rows))}
    assert not texts & {"where is my order", "order"}


def test_a_question_without_any_form_has_no_row() -> None:
    assert form_rows([row("?", "What do you mean?")]) == []
