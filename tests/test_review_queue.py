"""The review queue: which answers wait for a reviewer, and how pressing each is."""

import random
import sqlite3
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from sqlite_utils import Database as Tables

from feedback.db.migrations import load_migrations
from feedback.exemplars import active_answers
from feedback.review.decisions import decide
from feedback.review.queue import count_pending, list_pending
from feedback.store import Store
from tests.fixtures import public_data
from tests.fixtures.conversations import SPEAKER, add_answer, add_edit, add_retry, add_thumbs_down


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


def test_an_answer_that_nobody_minds_does_not_wait(store: Store) -> None:
    id = add_answer(store, "Open?")
    store.add_feedback(id, "ann", "thumb", {"up": True})
    store.add_feedback(id, "ann", "signal", {"name": "copy"})
    assert list_pending(store) == [] and count_pending(store) == 0


def test_an_item_shows_all_that_a_reviewer_needs(store: Store) -> None:
    id = add_answer(store, "And on Sundays?", "No.", earlier=[("Open?", "Yes.")])
    add_thumbs_down(store, id, "ann", reasons=("too short",))
    add_thumbs_down(store, id, "bob", reasons=("not correct", "too short"))
    add_edit(store, add_edit(store, id, "At ten."), "At eleven.")
    store.add_feedback(id, "bob", "comment", {"text": "They do open."})
    (item,) = list_pending(store)
    assert (item.answer.id, item.question, item.proposed) == (
        id,
        "And on Sundays?",
        "At eleven.",
    )
    assert [turn.content for turn in item.exchange.thread] == [
        "Open?",
        "Yes.",
        "And on Sundays?",
        "No.",
    ]
    assert item.why == "edited, thumb down by 2, commented"
    assert (item.reasons, item.comments) == (["not correct", "too short"], ["They do open."])


def test_edits_go_before_thumbs_and_more_thumbs_before_fewer(store: Store) -> None:
    commented, one, edited, two = (add_answer(store, f"Question {n}?") for n in range(4))
    store.add_feedback(commented, "ann", "comment", {"text": "Hm."})
    add_thumbs_down(store, one, "ann")
    add_edit(store, edited, "Better.")
    add_thumbs_down(store, two, "ann", "bob")
    assert [item.answer.id for item in list_pending(store)] == [
        edited,
        two,
        one,
        commented,
    ]
    assert [item.answer.id for item in list_pending(store, limit=2)] == [edited, two]
    assert count_pending(store) == 4


def test_a_thumb_taken_back_or_turned_does_not_wait(store: Store) -> None:
    for up in (True, None):
        id = add_thumbs_down(store, add_answer(store, "Open?"), "ann")
        store.add_feedback(id, "ann", "thumb", {"up": up})
    assert list_pending(store) == []


@pytest.mark.parametrize("action", ["approve", "correct", "reject"])
def test_a_decided_answer_leaves_the_queue(store: Store, action: str) -> None:
    id = add_edit(store, add_thumbs_down(store, add_answer(store, "Open?"), "ann"), "From 9.")
    decide(store, id, "rita", action, "From 9 to 6." if action == "correct" else None)
    add_thumbs_down(store, id, "bob")
    assert list_pending(store) == [] and count_pending(store) == 0


def test_a_new_edit_after_a_decision_reopens(store: Store) -> None:
    id = add_edit(store, add_answer(store, "Open?"), "From 9.")
    decide(store, id, "rita", "approve")
    add_edit(store, id, "From 9.", "bob")
    assert list_pending(store) == []
    add_edit(store, id, "From 10.", "bob")
    assert [item.proposed for item in list_pending(store)] == ["From 10."]
    decide(store, id, "rita", "reject")
    assert list_pending(store) == []


def test_each_answer_waits_by_itself(store: Store) -> None:
    first = add_edit(store, add_answer(store, "Open?"), "From 9.")
    second = add_edit(store, add_retry(store, first, "Never.", SPEAKER), "From 9.")
    decide(store, first, "rita", "approve")
    assert [item.answer.id for item in list_pending(store)] == [second]


def test_real_edits_pass_through_the_queue(store: Store) -> None:
    """Four people each correct a learner's sentences; a reviewer takes the newest edit."""
    edits = public_data.load_edits(60)
    ids = [add_answer(store, f"Sentence {n}?", source) for n, (source, _) in enumerate(edits)]
    for id, (_, texts) in zip(ids, edits, strict=True):
        for n, text in enumerate(texts):
            add_edit(store, id, text, f"p{n}")
    assert {item.answer.id for item in list_pending(store, limit=100)} == set(ids)
    for item in list_pending(store, limit=100):
        decide(store, item.answer.id, "rita", "approve", item.proposed)
    assert list_pending(store) == []
    approved = {one.message_id: one.answer for one in active_answers(store)}
    assert approved == {id: texts[-1] for id, (_, texts) in zip(ids, edits, strict=True)}


def test_the_queue_is_what_a_walk_over_all_feedback_finds_whatever_came_and_went(
    store: Store,
) -> None:
    rng = random.Random(5)
    ids = [add_answer(store, f"Question {n}?") for n in range(6)]
    for _ in range(150):
        give_feedback_or_decide(store, rng.choice(ids), rng)
        assert_queue_is_complete(store)


def test_the_queue_of_an_older_home_is_filled_when_it_is_opened(tmp_path: Path) -> None:
    path, rng = tmp_path / "old.db", random.Random(6)
    old = Tables(sqlite3.connect(path))
    load_migrations().apply(old, stop_before=["m009_pending"])
    old.conn.execute("pragma user_version = 8")
    made = Store(tmp_path / "new.db")
    for n in range(6):
        id = add_answer(made, f"Question {n}?")
        for _ in range(10):
            give_feedback_or_decide(made, id, rng)
    with old.conn:
        old.conn.execute("attach ? as made", (str(made.path),))
        for table in ("conversation", "message", "speaker", "feedback", "review"):
            columns = ", ".join(row[1] for row in old.conn.execute(f"pragma table_info({table})"))
            old.conn.execute(f"insert into {table} select {columns} from made.{table}")
    old.close()
    store = Store(path)
    assert counted(store) == counted(made) != []
    assert_queue_is_complete(store)


def counted(store: Store) -> list[tuple[str, int]]:
    return [(item.answer.id, item.priority) for item in list_pending(store)]


def give_feedback_or_decide(store: Store, id: str, rng: random.Random) -> None:
    person = rng.choice(["ann", "bob"])
    text = rng.choice(["From 9.", "From 10."])
    match rng.randrange(6):
        case 0:
            add_edit(store, id, text, person)
        case 1:
            store.add_feedback(id, person, "comment", {"text": text})
        case 2:
            decide(store, id, "rita", rng.choice(["correct", "reject"]), text)
        case 3 if store.feedback_on(id):
            with store.write() as db:  # an erasure, of what no decision refers to
                db.execute(
                    "delete from feedback where message_id = ? and person = ?"
                    " and id not in (select feedback_id from review where feedback_id is not null)",
                    (id, person),
                )
        case _:
            store.add_feedback(id, person, "thumb", {"up": rng.choice([True, False, None])})


def assert_queue_is_complete(store: Store) -> None:
    sql = "select message_id, sum(points) as priority from waiting_feedback group by message_id"
    expected = {row["message_id"]: row["priority"] for row in store.rows(sql)}
    assert {item.answer.id: item.priority for item in list_pending(store)} == expected
    assert count_pending(store) == len(expected)


@pytest.mark.parametrize(
    "read", [list_pending, lambda store: list_pending(store, 1), count_pending]
)
def test_reading_the_queue_costs_the_same_in_a_larger_store(
    store: Store, read: Callable[[Store], object]
) -> None:
    fill(store, 180)
    small = count_steps(store, read)
    fill(store, 600)
    assert count_steps(store, read) <= 1.1 * small


def test_a_preference_costs_the_same_in_a_larger_store(store: Store) -> None:
    def choose(store: Store) -> None:
        better = add_answer(store, "Which?")
        worse = add_retry(store, better, "That.")
        store.add_feedback(better, "ann", "choice", {"over": worse})
        for answer, up in ((better, False), (worse, True)):
            store.add_feedback(answer, "bob", "thumb", {"up": up})

    for _ in range(30):
        choose(store)
    small = count_steps(store, choose)
    for _ in range(100):
        choose(store)
    assert count_steps(store, choose) <= 1.1 * small


@pytest.mark.parametrize("name", ["person-{}", "platform/person-{}"])
def test_a_vote_costs_little_also_where_many_have_voted_on_the_same_answers(
    store: Store, name: str
) -> None:
    worse = add_answer(store, "Which?")
    better = add_retry(store, worse, "That.")
    numbers = count(1)

    def vote(store: Store) -> None:
        person = name.format(next(numbers))
        for answer, up in ((worse, False), (better, True)):
            store.add_feedback(answer, person, "thumb", {"up": up})

    for _ in range(20):
        vote(store)
    few = count_steps(store, vote)
    for _ in range(60):
        vote(store)
    assert count_steps(store, vote) <= 6 * few, "it grows with the votes, not with their square"


def fill(store: Store, answers: int) -> None:
    """Add answers; every second one was disliked, every third decided on."""
    with store.write():
        for n in range(answers):
            id = add_answer(store, f"Question {n}?")
            if n % 2 == 0:
                add_thumbs_down(store, id, "ann")
            if n % 3 == 0:
                decide(store, id, "rita", "reject")


def count_steps(store: Store, read: Callable[[Store], object]) -> int:
    """Return how many instructions SQLite runs, which unlike seconds are always the same."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection = store._connection()
    connection.set_progress_handler(count, 1)
    read(store)
    connection.set_progress_handler(None, 1)
    return steps
