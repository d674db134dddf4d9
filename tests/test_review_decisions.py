"""Reviewers' decisions: what each does to approved answers, and which are refused."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database as Tables

from feedback.curation.curate import curate
from feedback.db.migrations import MIGRATIONS, load_migrations
from feedback.exemplars import active_answers, find_approved
from feedback.messages import NotFoundError, Speaker
from feedback.review.decisions import BadDecisionError, decide, decision_on
from feedback.store import Store
from tests.fixtures.conversations import SPEAKER, add_answer, add_edit, add_thumbs_down


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


def test_approving_an_edit_makes_it_the_right_answer(store: Store) -> None:
    id = add_edit(store, add_edit(store, add_answer(store, "Open?"), "From 8."), "From 9.", "bob")
    decision = decide(store, id, "rita", "approve", note="checked")
    assert (decision.answer, decision.reviewer, decision.note) == ("From 9.", "rita", "checked")
    assert decision_on(store, id) == decision
    found = find_approved(store, "open")
    assert found is not None and found.answer == "From 9."


def test_approving_without_an_edit_makes_the_answer_itself_right(store: Store) -> None:
    id = add_thumbs_down(store, add_answer(store, "Open?", "From 9."), "ann")
    assert decide(store, id, "rita", "approve").answer == "From 9."


def test_what_is_approved_is_what_the_reviewer_saw(store: Store) -> None:
    id = add_edit(store, add_answer(store, "Open?"), "From 9.")
    add_edit(store, id, "Never.", "mallory")
    with pytest.raises(BadDecisionError, match="not the newest one any more"):
        decide(store, id, "rita", "approve", "From 9.")
    assert decision_on(store, id) is None and active_answers(store) == []


def test_correcting_needs_a_text(store: Store) -> None:
    id = add_answer(store, "Open?")
    for text in (None, "", "  \n"):
        with pytest.raises(BadDecisionError, match="empty; correct it with a text"):
            decide(store, id, "rita", "correct", text)
    with pytest.raises(BadDecisionError, match="empty"):
        decide(store, add_answer(store, "Open?", ""), "rita", "approve")


def test_rejecting_approves_nothing(store: Store) -> None:
    id = add_edit(store, add_answer(store, "Open?"), "Never.")
    assert decide(store, id, "rita", "reject").answer is None
    assert active_answers(store) == []


def test_a_later_decision_replaces_the_earlier(store: Store) -> None:
    id = add_answer(store, "Open?")
    for text in ("From 9.", "From 10."):
        decide(store, id, "rita", "correct", text)
    assert [one.answer for one in active_answers(store)] == ["From 10."]
    decide(store, id, "rita", "reject")
    assert active_answers(store) == []


def test_the_same_question_elsewhere_has_one_approved_answer(store: Store) -> None:
    for question, text in (("Are you open?", "From 9."), ("are you OPEN", "From 10.")):
        decide(store, add_answer(store, question), "rita", "correct", text)
    assert [one.answer for one in active_answers(store)] == ["From 10."]


def test_follow_ups_to_different_turns_do_not_replace_each_other(store: Store) -> None:
    for before, text in (("When do you open?", "At 11."), ("Do you deliver?", "No.")):
        id = add_answer(store, "And on Sundays?", earlier=[(before, "Yes.")])
        decide(store, id, "rita", "correct", text)
    assert {one.answer for one in active_answers(store)} == {"At 11.", "No."}


@pytest.mark.parametrize("action", ["correct", "reject"])
def test_deciding_against_an_approved_answer_as_given_withdraws_it(
    store: Store, action: str
) -> None:
    decide(store, add_answer(store, "Are you open on Sundays?"), "rita", "correct", "At 11.")
    speaker = Speaker("a-1", "tiny", source="approved", exemplars=[active_answers(store)[0].id])
    given = add_answer(store, "Are you open on Sunadys?", "At 11.", speaker=speaker)
    decide(store, given, "rita", action, "At 12." if action == "correct" else None)
    expected = ["At 12."] if action == "correct" else []
    assert [one.answer for one in active_answers(store)] == expected


def test_a_decision_is_kept_whole_or_not_at_all(store: Store) -> None:
    id = add_answer(store, "Open?")
    with store.write() as db:
        db.execute("drop table approved_fts")
    with pytest.raises(Exception, match="approved_fts"):
        decide(store, id, "rita", "correct", "From 9.")
    assert decision_on(store, id) is None


@pytest.mark.parametrize(
    ("action", "of", "error", "message"),
    [
        (
            "delete",
            lambda store, id: id,
            BadDecisionError,
            "unknown action 'delete'; one of approve",
        ),
        (
            "reject",
            lambda store, id: store.message(id).parent_id,
            BadDecisionError,
            "answers nobody",
        ),
        ("reject", lambda store, id: "msg-0", NotFoundError, "msg-0"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(
    store: Store,
    action: str,
    of: Callable[[Store, str], str],
    error: type[Exception],
    message: str,
) -> None:
    id = add_answer(store, "Open?")
    with pytest.raises(error, match=message):
        decide(store, of(store, id), "rita", action)


CUT = replace(SPEAKER, finish="length")


@pytest.mark.parametrize(
    ("action", "text"), [("approve", None), ("approve", "From 9 to"), ("correct", " From 9 to\n")]
)
@pytest.mark.parametrize("finish", ["length", "cancelled", "error"])
def test_an_answer_without_its_end_is_never_right_as_it_is(
    store: Store, action: str, text: str | None, finish: Any
) -> None:
    speaker = replace(SPEAKER, finish=finish)
    id = add_thumbs_down(store, add_answer(store, "Open?", "From 9 to", speaker=speaker), "ann")
    with pytest.raises(BadDecisionError, match="cut before its end; correct it with the whole"):
        decide(store, id, "rita", action, text)
    assert active_answers(store) == []
    assert decide(store, id, "rita", "correct", "From 9 to 6.").answer == "From 9 to 6."


def test_an_edit_that_repeats_a_cut_answer_does_not_complete_it(store: Store) -> None:
    id = add_edit(store, add_answer(store, "Open?", "From 9 to", speaker=CUT), "From 9 to")
    with pytest.raises(BadDecisionError, match="cut before its end"):
        decide(store, id, "rita", "approve")
    assert decide(store, add_edit(store, id, "From 9."), "rita", "approve").answer == "From 9."


def test_cut_answers_that_an_older_talkback_approved_are_withdrawn(tmp_path: Path) -> None:
    path, made = tmp_path / "old.db", Store(tmp_path / "new.db")
    step = next(one.__name__ for one in MIGRATIONS if one.__name__.endswith("_cut_answers"))
    whole, cut = (add_answer(made, question, "From 9 to") for question in ("Open?", "When?"))
    for id in (whole, cut):
        decide(made, id, "rita", "approve")
    old = Tables(sqlite3.connect(path))
    load_migrations().apply(old, stop_before=[step])
    old.conn.execute(f"pragma user_version = {int(step[1:4]) - 1}")
    old.conn.execute("attach ? as made", (str(made.path),))
    with old.conn:
        for table in ("conversation", "message", "review", "approved"):
            known = ", ".join(row[1] for row in old.conn.execute(f"pragma table_info({table})"))
            old.conn.execute(f"insert into {table} select {known} from made.{table} order by rowid")
        for id, finish in ((whole, "finish"), (cut, "'length'")):
            columns = ", ".join(
                finish if row[1] == "finish" else row[1]
                for row in old.conn.execute("pragma table_info(speaker)")
            )
            old.conn.execute(
                f"insert into speaker select {columns} from made.speaker where message_id = ?",
                (id,),
            )
    old.close()
    store = Store(path)
    assert [one.message_id for one in active_answers(store)] == [whole]
    assert {row.message_id for row in curate(store).rows} == {whole}
