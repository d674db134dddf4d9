"""Two who decide on one answer, or say something while another decides: nobody is overruled
unknowingly."""

from collections.abc import Callable
from pathlib import Path

import pytest

from feedback.exemplars import active_answers
from feedback.review.conflicts import DecisionConflictError
from feedback.review.decisions import decide, decision_on
from feedback.review.queue import find_item, list_pending
from feedback.store import Store
from tests.fixtures.conversations import add_answer, add_edit, add_thumbs_down


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


@pytest.mark.parametrize(
    ("happens", "news"),
    [
        (lambda store, id: decide(store, id, "rita", "approve"), 'rita approved "From 9." on 20'),
        (
            lambda store, id: decide(store, id, "rita", "correct", "From 7."),
            'rita corrected it to "From 7." on 20',
        ),
        (lambda store, id: decide(store, id, "rita", "reject"), "rita rejected it on 20"),
        (lambda store, id: add_edit(store, id, "From 8.", "cleo"), 'cleo edited it to "From 8."'),
        (lambda store, id: add_thumbs_down(store, id, "cleo"), "cleo disliked it on 20"),
        (
            lambda store, id: store.add_feedback(id, "cleo", "comment", {"text": "Hm."}),
            'cleo commented "Hm."',
        ),
    ],
)
@pytest.mark.parametrize("action", ["approve", "correct", "reject"])
def test_what_happened_since_it_was_seen_is_reported_and_stands(
    store: Store, happens: Callable[[Store, str], object], news: str, action: str
) -> None:
    id = add_edit(store, add_answer(store, "Open?"), "From 9.")
    (item,) = list_pending(store)
    happens(store, id)
    decided, approved = decision_on(store, id), active_answers(store)
    with pytest.raises(DecisionConflictError) as refused:
        decide(store, id, "bob", action, "From 9.", seen=item.version)
    assert news in str(refused.value)
    assert (decision_on(store, id), active_answers(store)) == (decided, approved)
    text = "From 9."
    decide(store, id, "bob", action, text, seen=find_item(store, id).version)
    newest = decision_on(store, id)
    assert newest is not None and newest.reviewer == "bob"


def test_what_reviewers_are_not_shown_refuses_nothing(store: Store) -> None:
    id = add_edit(store, add_answer(store, "Open?"), "From 9.")
    (item,) = list_pending(store)
    store.add_feedback(id, "cleo", "thumb", {"up": True})
    store.add_feedback(id, "cleo", "signal", {"name": "copy"})
    assert decide(store, id, "bob", "approve", seen=item.version).answer == "From 9."


@pytest.mark.parametrize("seen", ["", ".", "none.none", "nonsense", "rev-1.fb-1"])
def test_a_version_that_never_was_is_refused(store: Store, seen: str) -> None:
    id = add_edit(store, add_answer(store, "Open?"), "From 9.")
    with pytest.raises(DecisionConflictError, match=r'ann edited it to "From 9\."'):
        decide(store, id, "bob", "approve", seen=seen)


def test_who_does_not_say_what_was_seen_overrules_only_the_own_decision(store: Store) -> None:
    id = add_edit(store, add_answer(store, "Open?"), "From 9.")
    decide(store, id, "rita", "approve")
    with pytest.raises(DecisionConflictError, match=r'rita approved "From 9\."'):
        decide(store, id, "bob", "reject")
    assert [one.answer for one in active_answers(store)] == ["From 9."]
    add_edit(store, id, "From 10.", "cleo")
    assert decide(store, id, "bob", "approve").answer == "From 10."  # it waited anew
    assert decide(store, id, "bob", "reject").answer is None


def test_edits_of_several_people_are_all_shown_and_any_can_be_approved(store: Store) -> None:
    id = add_answer(store, "Open?")
    for person, text in (("ann", "From 8."), ("bob", "From 9."), ("cleo", "From 10.")):
        add_edit(store, id, text, person)
    add_edit(store, id, "From 9.", "dan")
    (item,) = list_pending(store)
    assert [(one.text, one.people) for one in item.proposals] == [
        ("From 8.", ["ann"]),
        ("From 10.", ["cleo"]),
        ("From 9.", ["bob", "dan"]),
    ]
    assert item.disagree and item.proposed == "From 9."
    assert all(one.created_at.startswith("20") for one in item.proposals)
    decision = decide(store, id, "rita", "approve", "From 8.", seen=item.version)
    assert (decision.action, decision.answer) == ("approve", "From 8.")


def test_one_person_who_thinks_again_disagrees_with_nobody(store: Store) -> None:
    id = add_answer(store, "Open?")
    for text in ("From 8.", "From 9."):
        add_edit(store, id, text)
    (item,) = list_pending(store)
    assert len(item.proposals) == 2 and not item.disagree
