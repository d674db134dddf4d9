"""The split: by cluster, once and for ever, and nothing near a held-out question trains."""

import random
from pathlib import Path

import pytest

from feedback.curation.split import NEAR_DUPLICATE, Assignment, SplitItem, _new_cluster, assign
from feedback.similarity import trigram_similarity
from feedback.store import Store
from tests.fixtures import public_data
from tests.fixtures.conversations import add_answer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


def item(store: Store, question: str, **position: object) -> SplitItem:
    id = add_answer(store, question, **position)  # type: ignore[arg-type]
    return SplitItem(id, store.message(id).conversation_id, question)


def side(assignment: Assignment | None) -> str | None:
    return assignment and assignment.side


def of_side(wanted: str) -> str:
    """Some question that the hash puts on this side."""
    for n in range(100):
        question = f"{chr(97 + n % 26) * 5} {chr(98 + n // 26 % 26) * 5} {n}?"
        found = assign_alone(question)
        if found == wanted:
            return question
    raise AssertionError(wanted)


def assign_alone(question: str) -> str:
    return _new_cluster(SplitItem("x", "y", question), 0.1).side


def test_the_share_held_out_is_about_the_one_asked_for(store: Store) -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    questions = ["".join(rng.choices(letters, k=12)) for _ in range(1500)]
    held = [question for question in questions if assign_alone(question) == "held_out"]
    assert 0.07 < len(held) / len(questions) < 0.13


def test_nothing_is_held_out_at_a_share_of_zero(store: Store) -> None:
    items = [item(store, of_side(wanted)) for wanted in ("train", "held_out")]
    assignments = assign(store, items, held_out=0.0)
    assert {side(assignment) for assignment in assignments.values()} == {"train"}


def test_the_same_questions_split_alike_everywhere(store: Store, tmp_path: Path) -> None:
    questions = [of_side("train"), of_side("held_out"), "Do you ship to Norway?"]
    sides = []
    for here in (store, Store(tmp_path / "other.db")):
        assignments = assign(here, [item(here, question) for question in questions], held_out=0.1)
        sides.append([side(assignment) for assignment in assignments.values()])
    assert sides[0] == sides[1]


def test_a_decision_stands_whatever_share_is_asked_for_later(store: Store) -> None:
    items = [item(store, of_side("train")), item(store, of_side("held_out"))]
    first = assign(store, items, held_out=0.1)
    for share in (0.0, 0.5):
        assert assign(store, items, held_out=share) == first


def test_looking_does_not_decide_and_tells_the_truth(store: Store) -> None:
    items = [item(store, of_side("train")), item(store, of_side("held_out"))]
    seen = assign(store, items, held_out=0.1, persist=False)
    assert store.rows("select * from split") == []
    assert assign(store, items, held_out=0.1) == seen


def test_a_conversation_and_near_duplicates_are_one_cluster(store: Store) -> None:
    first = item(store, "When do you open on Sundays?")
    near = item(store, "when do you open on sunday")
    talk = store.message(near.id)
    turn = store.add_message(talk.conversation_id, near.id, "user", "Do you sell kayaks?")
    reply = store.add_message(talk.conversation_id, turn, "assistant", "No.")
    third = SplitItem(reply, talk.conversation_id, "Do you sell kayaks?")
    other = item(store, "How heavy is the moon?")
    assignments = assign(store, [first, near, third, other], held_out=0.1)
    clusters = [assignment.cluster for assignment in assignments.values() if assignment]
    assert len(set(clusters[:3])) == 1 and clusters[3] != clusters[0]


def test_a_newcomer_near_a_held_out_question_is_held_out(store: Store) -> None:
    question = of_side("held_out")
    assign(store, [item(store, question)], held_out=0.1)
    near = item(store, question.removesuffix("?") + "!")
    assert side(assign(store, [near], held_out=0.0)[near.id]) == "held_out"


def test_a_newcomer_that_touches_both_sides_goes_to_neither(store: Store) -> None:
    train, held = item(store, of_side("train")), item(store, of_side("held_out"))
    assign(store, [train, held], held_out=0.1)
    talk = store.message(train.id)
    turn = store.add_message(talk.conversation_id, train.id, "user", held.question)
    bridge = store.add_message(talk.conversation_id, turn, "assistant", "Hm.")
    assignments = assign(
        store, [train, held, SplitItem(bridge, talk.conversation_id, held.question)], held_out=0.1
    )
    assert [side(assignment) for assignment in assignments.values()] == ["train", "held_out", None]
    assert store.row("select count(*) from cluster_member")[0] == 2


def test_of_newcomers_that_link_both_sides_only_the_link_is_lost(store: Store) -> None:
    train, held = item(store, of_side("train")), item(store, of_side("held_out"))
    assign(store, [train, held], held_out=0.1)
    near_train = item(store, train.question)
    near_held = item(store, held.question, person="bob")
    joined = SplitItem(near_held.id, near_train.conversation_id, held.question)
    assignments = assign(store, [near_train, joined], held_out=0.1)
    assert sorted(str(side(assignment)) for assignment in assignments.values()) == ["None", "train"]


def test_no_real_question_trains_beside_a_near_duplicate_that_is_held_out(store: Store) -> None:
    """Real questions arrive in three batches, in a random order."""
    items = [item(store, turns[0]) for turns in public_data.load_dialogues(450)]
    random.Random(1).shuffle(items)
    assignments: dict[str, Assignment | None] = {}
    for n in range(3):
        assignments |= assign(store, items[n::3], held_out=0.3)
    by_side = {
        wanted: [one.question for one in items if side(assignments[one.id]) == wanted]
        for wanted in ("train", "held_out")
    }
    assert len(by_side["held_out"]) > 50
    leaks = [
        (one, other)
        for one in set(by_side["held_out"])
        for other in set(by_side["train"])
        if trigram_similarity(one, other) >= NEAR_DUPLICATE
    ]
    assert leaks == []
