"""Curation: what becomes a row, what does not, and the reason in words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feedback.curation.curate import CurateSettings, Curation, Row, curate
from feedback.messages import Speaker
from feedback.review.decisions import decide
from feedback.store import Store
from tests.fixtures import public_data
from tests.fixtures.conversations import SPEAKER, add_answer, add_retry

ALL_TRAIN = CurateSettings(held_out=0)
HALF_HELD_OUT = CurateSettings(held_out=0.5, held_out_from=0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


def up(store: Store, id: str, person: str = "ann", up: bool | None = True) -> str:
    return store.add_feedback(id, person, "thumb", {"up": up}, known=True)


def choose(store: Store, better: str, worse: str, person: str = "ann", **more: Any) -> str:
    return store.add_feedback(better, person, "choice", {"over": worse, **more}, known=True)


def two(store: Store, question: str, one: str = "From 9.", other: str = "No idea.") -> list[str]:
    """Two answers to one question."""
    first = add_answer(store, question, one)
    return [first, add_retry(store, first, other)]


def reasons(curation: Curation) -> list[str]:
    return [dropped.reason for dropped in curation.dropped]


def only(curation: Curation, kind: str) -> Row:
    (row,) = [row for row in curation.rows if row.kind == kind]
    return row


def test_nothing_said_nothing_learned(store: Store) -> None:
    add_answer(store, "Open?")
    assert curate(store) == Curation([], [])


def test_a_correction_is_a_target_and_a_pair(store: Store) -> None:
    id = add_answer(store, "And on Sundays?", "No idea.", earlier=[("Open?", "From 9.")])
    decision = decide(store, id, "rita", "correct", "From 11.")
    curation = curate(store, ALL_TRAIN)
    sft, pair = only(curation, "sft"), only(curation, "pair")
    turns = [("user", "Open?"), ("assistant", "From 9."), ("user", "And on Sundays?")]
    assert [(turn["role"], turn["content"]) for turn in sft.prompt] == turns
    assert (sft.chosen, sft.rejected) == ("From 11.", "No idea.")
    assert (sft.message_id, sft.sources, sft.people) == (id, [decision.id], ["ann"])
    assert replace(pair, kind="sft") == sft and sft.side == "train" and sft.cluster


def test_an_approved_edit_names_who_made_it(store: Store) -> None:
    id = add_answer(store, "Open?")
    edit = store.add_feedback(id, "bob", "edit", {"text": "From 9."})
    decision = decide(store, id, "rita", "approve")
    sft = only(curate(store, ALL_TRAIN), "sft")
    assert (sft.chosen, sft.sources, sft.people) == ("From 9.", [decision.id, edit], ["ann", "bob"])


def test_an_answer_approved_as_it_is_makes_no_pair(store: Store) -> None:
    decide(store, add_answer(store, "Open?", "From 9."), "rita", "approve")
    (row,) = curate(store, ALL_TRAIN).rows
    assert (row.kind, row.chosen, row.rejected) == ("sft", "From 9.", None)


def test_the_prompt_has_the_system_prompt_and_not_the_exemplars(store: Store) -> None:
    speaker = replace(SPEAKER, system_prompt="Be brief.", exemplars=["app-1"])
    decide(store, add_answer(store, "Open?", speaker=speaker), "rita", "correct", "From 9.")
    assert only(curate(store, ALL_TRAIN), "sft").prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Open?"},
    ]


@pytest.mark.parametrize("finish", ["length", "cancelled", "error"])
def test_half_an_answer_is_corrected_but_nothing_to_prefer_to(store: Store, finish: Any) -> None:
    speaker = replace(SPEAKER, finish=finish)
    decide(store, add_answer(store, "Open?", "From", speaker=speaker), "rita", "correct", "From 9.")
    (row,) = curate(store, ALL_TRAIN).rows
    assert (row.kind, row.rejected) == ("sft", None)


def test_an_edit_waits_for_a_reviewer(store: Store) -> None:
    store.add_feedback(add_answer(store, "Open?"), "mallory", "edit", {"text": "Never."})
    curation = curate(store)
    assert curation.rows == [] and reasons(curation) == ["waits for a reviewer"]
    assert curation.dropped[0].text == "Never."


def test_an_edit_after_a_decision_waits_and_the_decision_stands(store: Store) -> None:
    id = add_answer(store, "Open?")
    decide(store, id, "rita", "correct", "From 9.")
    store.add_feedback(id, "mallory", "edit", {"text": "Never."})
    curation = curate(store, ALL_TRAIN)
    assert {row.chosen for row in curation.rows} == {"From 9."}
    assert reasons(curation) == ["waits for a reviewer"]


def test_a_rejected_answer_teaches_nothing(store: Store) -> None:
    id = add_answer(store, "Open?")
    store.add_feedback(id, "mallory", "edit", {"text": "Never."})
    decide(store, id, "rita", "reject")
    curation = curate(store)
    assert curation.rows == []
    assert sorted(reasons(curation)) == ["a reviewer decided otherwise", "rejected by reviewer"]


def test_a_later_correction_of_the_question_replaces_the_earlier(store: Store) -> None:
    for question, right in (("Are you open?", "From 9."), ("are you open", "From 10.")):
        decide(store, add_answer(store, question), "rita", "correct", right)
    curation = curate(store, ALL_TRAIN)
    assert {row.chosen for row in curation.rows} == {"From 10."}
    assert reasons(curation) == ["later correction replaces it"]


def test_a_thumb_alone_is_kept_for_later(store: Store) -> None:
    up(store, add_answer(store, "Open?"))
    up(store, add_answer(store, "Closed?"), up=False)
    taken_back = add_answer(store, "Parking?")
    up(store, taken_back)
    up(store, taken_back, up=None)
    store.add_feedback(taken_back, "ann", "comment", {"text": "Hm."})
    store.add_feedback(taken_back, "ann", "signal", {"name": "copy"})
    curation = curate(store)
    assert curation.rows == []
    alone = "thumb alone: kept for KTO"
    comment = "a comment is for the reviewer to read"
    assert reasons(curation) == [alone, alone, "thumb taken back", comment]


def test_a_choice_is_a_pair(store: Store) -> None:
    good, bad = two(store, "Open?")
    id = choose(store, good, bad, "bob")
    (row,) = curate(store, ALL_TRAIN).rows
    assert (row.kind, row.chosen, row.rejected) == ("pair", "From 9.", "No idea.")
    assert (row.sources, row.people, row.message_id) == ([id], ["ann", "bob"], good)


def test_a_liked_retry_over_a_disliked_first_is_a_pair(store: Store) -> None:
    bad, good = two(store, "Open?", "No idea.", "From 9.")
    sources = [up(store, bad, up=False), up(store, good)]
    curation = curate(store, ALL_TRAIN)
    (row,) = curation.rows
    assert (row.chosen, row.rejected, row.sources) == ("From 9.", "No idea.", sources)
    assert curation.dropped == []


def test_a_liked_first_over_a_disliked_retry_or_two_peoples_thumbs_are_no_pair(
    store: Store,
) -> None:
    first, second = two(store, "Open?")
    up(store, first)
    up(store, second, up=False)
    first, second = two(store, "Parking?", "No idea.", "Behind the shop.")
    up(store, first, "ann", up=False)
    up(store, second, "bob")
    assert curate(store).rows == []


def test_people_who_disagree_train_nothing_and_a_majority_does(store: Store) -> None:
    one, other = two(store, "Open?")
    choose(store, one, other, "ann")
    choose(store, other, one, "bob")
    assert reasons(curate(store)) == ["people disagree"]
    choose(store, one, other, "cem")
    assert only(curate(store), "pair").chosen == "From 9."


def test_a_persons_last_word_counts(store: Store) -> None:
    one, other = two(store, "Open?")
    choose(store, one, other)
    choose(store, other, one)
    assert only(curate(store), "pair").chosen == "No idea."
    choose(store, other, one, tie=True)
    assert reasons(curate(store))[0] == "a tie prefers neither"


@pytest.mark.parametrize(
    ("one", "other", "finish", "reason"),
    [
        ("From 9.", "", "stop", "empty answer"),
        ("From 9.", "from 9", "stop", "the two answers say the same"),
        ("From 9.", "Fr", "cancelled", "an answer was cut short"),
        ("From 9.", "Fr", "length", "an answer was cut short"),
    ],
)
def test_a_pair_needs_two_whole_and_different_answers(
    store: Store, one: str, other: str, finish: Any, reason: str
) -> None:
    first = add_answer(store, "Open?", one)
    second = add_retry(store, first, other, replace(SPEAKER, finish=finish))
    choose(store, first, second)
    assert reasons(curate(store)) == [reason]


def test_a_reviewers_word_goes_before_peoples_choices(store: Store) -> None:
    liked, other = two(store, "Are you open?", "Never.", "From 9.")
    choose(store, liked, other)
    decide(store, liked, "rita", "reject")
    stale, worse = two(store, "Do you deliver?", "For £5.", "No idea.")
    choose(store, stale, worse)
    decide(store, add_answer(store, "do you deliver"), "rita", "correct", "For free.")
    curation = curate(store)
    assert [row for row in curation.rows if "free" not in row.chosen] == []
    assert "a reviewer does not stand behind the preferred answer" in reasons(curation)
    assert "a reviewer approved another answer to this question" in reasons(curation)


def test_nobody_shapes_the_bot_alone(store: Store) -> None:
    for n in range(5):
        good, bad = two(store, f"{'abcde'[n] * 9}?", f"Answer {n}.")
        choose(store, good, bad, "mallory")
    curation = curate(store, CurateSettings(held_out=0, pairs_per_person=3))
    assert [row.chosen for row in curation.rows] == ["Answer 2.", "Answer 3.", "Answer 4."]
    assert reasons(curation) == ["cap of 3 pairs a person"] * 2
    choose(store, *two(store, "ffffffff?"), "ann")
    assert len(curate(store, CurateSettings(held_out=0, pairs_per_person=3)).rows) == 4


def test_the_same_pair_in_two_conversations_trains_once(store: Store) -> None:
    for question in ("Open?", "open"):
        choose(store, *two(store, question))
    curation = curate(store, ALL_TRAIN)
    assert len(curation.rows) == 1
    assert reasons(curation) == [f"same text as row {curation.rows[0].message_id}"]


def test_what_bridges_train_and_held_out_goes_to_neither(store: Store) -> None:
    held = train = ""
    n = 0
    while not (held and train):
        question = f"{chr(97 + n) * 7} {chr(98 + n) * 7}?"
        decide(store, add_answer(store, question), "rita", "correct", f"Answer {n}.")
        row = curate(store, HALF_HELD_OUT).rows[-1]
        held, train = (question, train) if row.side == "held_out" else (held, question)
        n += 1
    bridge = add_answer(store, held, earlier=[(train, "Yes.")])
    talk = store.thread(bridge)
    decide(store, talk[1].id, "rita", "correct", "One.")
    decide(store, bridge, "rita", "correct", "Two.")
    assert "bridges train and held-out" in reasons(
        curate(store, CurateSettings(held_out=0.5, held_out_from=0))
    )


def test_all_train_until_there_are_enough_and_what_trained_trains_for_ever(store: Store) -> None:
    settings = CurateSettings(held_out=0.5, held_out_from=12)
    sides: dict[str, str] = {}
    for n in range(16):
        id = add_answer(store, f"{chr(97 + n) * 9}?")
        decide(store, id, "rita", "correct", f"Answer {n}.")
        seen = {row.message_id: row.side for row in curate(store, settings).rows}
        assert sides.items() <= seen.items()
        sides = seen
        if n < 11:
            assert set(sides.values()) == {"train"}
    assert set(sides.values()) == {"train", "held_out"}


def test_looking_twice_gives_the_same(store: Store) -> None:
    for n in range(6):
        decide(store, add_answer(store, f"{'abcdef'[n] * 8}?"), "rita", "correct", f"Answer {n}.")
    seen = curate(store, persist=False)
    assert store.rows("select * from split") == []
    assert curate(store) == seen == curate(store)


def test_every_kind_of_feedback_is_accounted_for(store: Store) -> None:
    """On real edits and dialogues: all that was said is in a row, or is dropped with a reason."""
    sources: set[str] = set()
    for n, (source, texts) in enumerate(public_data.load_edits(40)):
        id = add_answer(store, f"How do I say number {n}?", source)
        for person, text in zip("abcd", texts, strict=True):
            sources.add(store.add_feedback(id, person, "edit", {"text": text}))
        if n % 2:
            decide(store, id, "rita", "approve")
    for turns in public_data.load_dialogues(40):
        id = add_answer(store, turns[0], turns[1])
        sources.add(up(store, id, up=len(turns) > 2))
    curation = curate(store)
    parts: list[Any] = [*curation.rows, *curation.dropped]
    assert sources <= {source for part in parts for source in part.sources}
    assert len([row for row in curation.rows if row.kind == "sft"]) >= 15
    assert all(row.chosen.strip() for row in curation.rows)


def test_words_of_people_never_train_without_a_reviewer(store: Store) -> None:
    speaker = Speaker("a-1", "tiny", house=True)
    for n, (source, texts) in enumerate(public_data.load_edits(30)):
        id = add_answer(store, f"Number {n}?", source, speaker=speaker)
        store.add_feedback(id, "ann", "edit", {"text": texts[0]})
        up(store, id, up=False)
        second = add_retry(store, id, texts[1])
        up(store, second)
    seen = {
        message.content
        for talk in store.conversations("ann")
        for message in store.messages(talk.id)
    }
    rows = curate(store, CurateSettings(pairs_per_person=1000)).rows
    assert rows and {row.chosen for row in rows} <= seen
    assert {row.kind for row in rows} == {"pair"}
