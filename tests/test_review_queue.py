"""The review queue: which answers wait for a reviewer, and how pressing each is."""

from pathlib import Path

import pytest

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
