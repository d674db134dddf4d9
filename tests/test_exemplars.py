"""Approved answers at work: when two questions are the same, when similar, when neither."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from feedback.exemplars import (
    active_answers,
    find_approved,
    find_exemplars,
    format_exemplars,
    graduate,
    question_key,
)
from feedback.ids import now
from feedback.matching.follow_ups import is_self_contained
from feedback.review.decisions import decide
from feedback.similarity import normalise_text
from feedback.store import Store
from tests.fixtures import public_data
from tests.fixtures.conversations import add_answer

HOURS = "On Sundays we open at 11."


def likeness(table: str) -> list[Any]:
    """Return a table of tests/fixtures/likeness.toml."""
    file = Path(__file__).parent / "fixtures" / "likeness.toml"
    rows: list[Any] = tomllib.loads(file.read_text(encoding="utf-8"))[table]
    return rows


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


def correct(store: Store, question: str, right: str, **position: object) -> str:
    """Ask, and have the answer corrected; the approved answer's id."""
    id = add_answer(store, question, **position)  # type: ignore[arg-type]
    decide(store, id, "rita", "correct", right)
    return active_answers(store)[0].id


def put_in_service(store: Store, adapter: str) -> None:
    with store.write() as db:
        row = {"id": adapter, "base": "tiny", "recipe": {}, "lineage": [], "created_at": now()}
        if not store.row("select 1 from adapter where id = ?", (adapter,)):
            db.insert("adapter", row)
        promotion = {"id": f"pro-{now()}-{adapter}", "adapter": adapter, "by": "person"}
        count = store.counts()["promotions"]
        promotion |= {"id": f"pro-{count}", "who": "olga", "reason": "", "created_at": now()}
        db.insert("promotion", promotion)


def test_the_prompt_begins_with_the_approved_answers() -> None:
    assert format_exemplars("When?", []) == "When?"
    assert format_exemplars("When?", [("Sundays?", "At 11."), ("Fax?", "No.")]) == (
        "Approved answers:\nQ: Sundays?\nA: At 11.\nQ: Fax?\nA: No.\n\nQuestion: When?"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Are you open on Sundays?", "  are you OPEN, on sundays"),
        ("Don't you ship?", "don\u2019t you ship"),
        ("Straße?", "STRASSE"),
        ("ﬁne", "fine"),
    ],
)
def test_case_punctuation_and_spacing_make_no_other_question(one: str, other: str) -> None:
    assert normalise_text(one) == normalise_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Do you teach C#?", "Do you teach C?"), ("Is it 1.5?", "Is it 15?"), ("5% off?", "5 off?")],
)
def test_marks_that_mean_something_make_another_question(one: str, other: str) -> None:
    assert normalise_text(one) != normalise_text(other)


def test_the_same_question_gets_the_approved_answer(store: Store) -> None:
    id = correct(store, "Are you open on Sundays?", HOURS)
    for question in (
        "are you open on sundays",
        "Are you open on Sunday?",
        "Are you open on Sunadys",
    ):
        found = find_approved(store, question)
        assert found is not None and (found.id, found.answer) == (id, HOURS)


@pytest.mark.parametrize(
    ("asked", "approved"),
    [
        ("Are you open on Mondays?", "Are you open on Sundays?"),
        ("Are you not open on Sundays?", "Are you open on Sundays?"),
        ("Where is order 12345?", "Where is order 12346?"),
        ("Do you sell houses?", "Do you sell blouses?"),
        (
            "Is the shop in York open late on the last Friday of every month, bank holidays aside?",
            "Is the shop in Bath open late on the last Friday of every month, bank holidays aside?",
        ),
        ("?", "!"),
        ("", "Hello"),
    ],
)
def test_a_question_that_only_looks_the_same_does_not(
    store: Store, asked: str, approved: str
) -> None:
    correct(store, approved, "Yes.")
    assert find_approved(store, asked) is None


def answers(path: Path, approved: Iterable[str], asked: Iterable[str]) -> list[str | None]:
    """What each question is answered with, where others are approved: each by itself as answer."""
    store = Store(path)
    for question in approved:
        correct(store, question, question)
    found = [find_approved(store, question) for question in asked]
    return [one and one.answer for one in found]


@pytest.mark.parametrize("way", [1, -1])
def test_an_opposite_question_never_gets_the_answer(tmp_path: Path, way: int) -> None:
    """Of each pair only one is approved: nothing but the words tells that they are two."""
    approved, asked = zip(*(pair[::way] for pair in likeness("opposites")), strict=True)
    assert len(asked) >= 40
    assert set(answers(tmp_path / "one.db", approved, asked)) == {None}
    for number in range(4):  # and alone, where a smaller vocabulary knows fewer words
        one, other = approved[number], asked[number]
        assert answers(tmp_path / f"{number}.db", [one], [other]) == [None], (one, other)


def test_typing_errors_get_the_answer_of_what_was_meant(tmp_path: Path) -> None:
    asked, meant = zip(*likeness("typing_errors"), strict=True)
    found = answers(tmp_path / "talkback.db", dict.fromkeys(meant), asked)
    right = [one == other for one, other in zip(found, meant, strict=True)]
    assert len(right) >= 40 and sum(right) >= 36
    assert set(found) <= {None, *meant}
    crossed = [pair for pair, one in zip(asked, found, strict=True) if one not in (None, *meant)]
    assert crossed == []


def test_a_word_of_an_approved_answer_is_no_typing_error(store: Store) -> None:
    correct(store, "Are you open on Sundays?", "No, only on the Sunday before Christmas.")
    assert find_approved(store, "Are you open on Sunday?") is None


@pytest.mark.parametrize(("one", "other"), likeness("same"))
def test_the_same_in_other_characters_gets_the_answer(tmp_path: Path, one: str, other: str) -> None:
    for asked, approved in ((one, other), (other, one)):
        path = tmp_path / f"{asked == one}.db"
        assert answers(path, [approved], [asked]) == [approved]


@pytest.mark.parametrize(("asked", "approved", "unlike"), likeness("unspaced"))
def test_whole_sentences_without_spaces_find_similar_ones_and_stand_alone(
    store: Store, asked: str, approved: str, unlike: str
) -> None:
    correct(store, unlike, "?")
    id = correct(store, approved, "10")
    before = ["What do you sell?"]
    assert [one.id for one in find_exemplars(store, asked, earlier=before)] == [id]
    assert find_approved(store, approved, earlier=before)


def test_no_question_of_real_talk_is_taken_for_another(store: Store) -> None:
    questions = {normalise_text(turns[0]): turns[0] for turns in public_data.load_dialogues(400)}
    for key, question in list(questions.items())[:150]:
        correct(store, question, key)
    wrong = []
    for key, question in questions.items():
        found = find_approved(store, question)
        if found is not None and found.answer != key:
            wrong.append((question, found.question))
    assert wrong == []


@pytest.mark.parametrize(
    ("question", "alone"),
    [
        ("What are your opening hours?", True),
        ("Do you ship to Norway", True),
        ("How much?", False),
        ("And are you open on Sundays?", False),
        ("What about returns by post?", False),
        ("How long does it take?", False),
        *((question, True) for question in likeness("stand_alone")),
        *((question, False) for question in likeness("follow_ups")),
    ],
)
def test_some_questions_stand_alone(question: str, alone: bool) -> None:
    assert is_self_contained(question) is alone


def test_a_follow_up_is_the_same_only_after_the_same_turn(store: Store) -> None:
    before = ("What are your opening hours?", "From 9 to 6.")
    correct(store, "And on Sundays?", HOURS, earlier=[before])
    assert find_approved(store, "And on Sundays?") is None
    assert find_approved(store, "And on Sundays?", earlier=["Do you deliver?"]) is None
    found = find_approved(
        store, "and on sundays", earlier=["Hello!", "what are your opening hours"]
    )
    assert found is not None and found.answer == HOURS


def test_a_question_that_stands_alone_is_the_same_anywhere(store: Store) -> None:
    correct(store, "Are you open on Sundays?", HOURS, earlier=[("Hello", "Hi!")])
    assert find_approved(store, "Are you open on Sundays?")
    assert find_approved(store, "Are you open on Sundays?", earlier=["Where are you?"])


def test_a_follow_up_takes_along_the_turns_it_leans_on() -> None:
    turns = ["Do you have a shop in York?", "What are your opening hours?", "And on Sundays?"]
    key = question_key("How about Mondays?", turns)
    assert key == "what are your opening hours / and on sundays / how about mondays"


def test_similar_questions_are_found_best_first(store: Store) -> None:
    correct(store, "What does returning a parcel cost?", "£4.")
    hours = correct(store, "Until when is the shop open on Sundays?", HOURS)
    correct(store, "Do you repair chairs?", "Yes.")
    assert [one.id for one in find_exemplars(store, "Is your shop open this Sunday?")] == [hours]


def test_a_question_is_recognised_by_the_answer_too(store: Store) -> None:
    correct(store, "Do you repair chairs?", "Yes, within a week.")
    hours = correct(store, "What are your hours?", "We are open from 8 am, Monday to Saturday.")
    assert [one.id for one in find_exemplars(store, "Is it open on a Monday at ten?")] == [hours]
    assert find_exemplars(store, "Do you deliver on a Monday at noon?") == [], (
        "one word is not enough"
    )


def test_irrelevant_answers_stay_out(store: Store) -> None:
    correct(store, "How can I reset my password?", "By mail.")
    correct(store, "Can I pay with a card?", "Yes.")
    for question in ("How can I reach you?", "Can I bring my dog?", "hello", "", '" OR *', "NEAR("):
        assert find_exemplars(store, question) == []


def test_a_follow_up_is_nobodys_exemplar_and_gets_none(store: Store) -> None:
    correct(store, "And on Sundays?", HOURS, earlier=[("When do you open?", "At 9.")])
    correct(store, "Are you open on Sundays?", HOURS)
    assert len(find_exemplars(store, "Open on Sundays?")) == 1
    assert find_exemplars(store, "And on Sundays?", earlier=["Do you deliver?"]) == []


def test_no_more_than_the_limit_are_found(store: Store) -> None:
    for day in ("Mondays", "Tuesdays", "Fridays", "Sundays"):
        correct(store, f"When does the shop open on {day}?", day)
    assert len(find_exemplars(store, "When does the shop open?")) == 3
    assert len(find_exemplars(store, "When does the shop open?", 1)) == 1
    assert find_exemplars(store, "When does the shop open?", 0) == []


def test_a_graduated_answer_leaves_the_prompts_of_its_adapter_only(store: Store) -> None:
    id = correct(store, "Are you open on Sundays?", HOURS)
    put_in_service(store, "a-1")
    graduate(store, id, "a-1")
    graduate(store, id, "a-1")
    assert find_approved(store, "Are you open on Sundays?") is None
    assert find_exemplars(store, "Open on Sundays?") == [] == active_answers(store)
    assert find_approved(store, "Are you open on Sundays?", adapter="base")


def test_a_rollback_brings_a_graduated_answer_back(store: Store) -> None:
    id = correct(store, "Are you open on Sundays?", HOURS)
    put_in_service(store, "a-0")
    put_in_service(store, "a-1")
    graduate(store, id, "a-1")
    put_in_service(store, "a-0")
    assert [one.id for one in active_answers(store)] == [id]


def test_a_withdrawn_answer_is_not_found(store: Store) -> None:
    id = add_answer(store, "Are you open on Sundays?")
    decide(store, id, "rita", "correct", HOURS)
    decide(store, id, "rita", "reject")
    assert find_approved(store, "Are you open on Sundays?") is None
    assert find_exemplars(store, "Are you open on Sundays?") == []


def test_withdrawn_answers_leave_the_room_to_those_in_use(store: Store) -> None:
    correct(store, "When do you open on Sundays, please, and where?", HOURS)
    for n in range(60):
        correct(store, "When do you open on Sundays?", f"{HOURS} {n}")
    with store.write() as db:
        db.execute("""insert or ignore into withdrawal select id, 'old', created_at from approved
            where question = 'When do you open on Sundays?'""")
    found = find_exemplars(store, "When on Sundays do you open?")
    assert [one.question for one in found] == ["When do you open on Sundays, please, and where?"]


def test_paraphrases_find_their_answer_and_strangers_mostly_none(store: Store) -> None:
    """On questions about the starter's shop: twenty topics corrected by one question each."""
    topics = tomllib.loads(
        (Path(__file__).parent / "fixtures" / "questions.toml").read_text(encoding="utf-8")
    )
    questions = {name: lines.strip().splitlines() for name, lines in topics.items()}
    known = sorted(questions)[::2]
    for name in known:
        correct(store, questions[name][0], name)
    found = misled = strangers = quiet = corrected = 0
    for name, lines in questions.items():
        for line in lines[1:]:
            answers = {one.answer for one in find_exemplars(store, line)}
            corrected += name in known
            strangers += name not in known
            found += name in known and name in answers
            misled += name in known and bool(answers) and name not in answers
            quiet += name not in known and not answers
    assert found / corrected > 0.7
    assert misled / corrected < 0.08
    assert quiet / strangers > 0.72
