"""The store: trees of messages, speakers, feedback, and what holds when a process is killed."""

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from feedback.db.database import StoreError
from feedback.kinds import BadFeedbackError
from feedback.messages import BadMessageError, NotFoundError, Role, Speaker
from feedback.store import Store
from tests.fixtures import public_data
from tests.fixtures.conversations import SPEAKER, add_answer, add_retry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


def test_a_conversation_is_titled_by_its_first_words(store: Store) -> None:
    talk = store.start_conversation("ann", "  When do\nyou open?  " + "word " * 30)
    title = store.conversation(talk).title
    assert title.startswith("When do you open? word") and title.endswith("…") and len(title) <= 61


def test_a_conversation_without_words_has_a_title_still(store: Store) -> None:
    assert store.conversation(store.start_conversation("ann", " ")).title == "New conversation"


def test_conversations_are_a_persons_own_newest_first(store: Store) -> None:
    first, _, third = (store.start_conversation(person, "Hi") for person in ("ann", "bob", "ann"))
    assert [talk.id for talk in store.conversations("ann")] == [third, first]


def test_a_thread_runs_from_the_opening_to_the_message(store: Store) -> None:
    last = add_answer(store, "And on Sundays?", "No.", earlier=[("Open?", "Yes.")])
    turns_kept = [(message.role, message.content) for message in store.thread(last)]
    turns = [("user", "Open?"), ("assistant", "Yes."), ("user", "And on Sundays?")]
    assert turns_kept == [*turns, ("assistant", "No.")]


def test_a_retry_is_a_sibling_and_the_branch_written_to_last_is_the_latest(store: Store) -> None:
    first = add_answer(store, "Open?", "Yes.")
    second = add_retry(store, first, "From 9 to 6.")
    message = store.message(first)
    assert message.parent_id is not None
    assert [child.id for child in store.children(message.parent_id)] == [first, second]
    latest = store.latest_message(message.conversation_id)
    assert latest is not None and latest.id == second
    assert [one.id for one in store.messages(message.conversation_id)][1:] == [first, second]


def test_an_empty_conversation_has_no_latest(store: Store) -> None:
    assert store.latest_message(store.start_conversation("ann", "Hi")) is None


def test_an_answer_knows_its_speaker(store: Store) -> None:
    speaker = Speaker(
        adapter="a-123456789abc",
        base="starter",
        base_revision="f00",
        system_prompt="Be brief.",
        exemplars=["app-1"],
        sampling={"temperature": 0.5, "stop": ["x"]},
        prompt_tokens=12,
        completion_tokens=3,
        first_token_ms=40.5,
        total_ms=90.25,
        finish="length",
    )
    id = add_answer(store, "Open?", "Yes.", speaker=speaker)
    kept = store.speaker(id)
    assert kept is not None and kept.message_id == id
    assert {**vars(kept), "message_id": ""} == vars(speaker)


def test_a_persons_message_has_no_speaker(store: Store) -> None:
    parent = store.message(add_answer(store, "Open?")).parent_id
    assert parent is not None and store.speaker(parent) is None


def test_an_id_may_be_given_and_is_taken_once(store: Store) -> None:
    talk = store.start_conversation("ann", "Hi")
    assert store.add_message(talk, None, "user", "Hi", id="msg-mine") == "msg-mine"
    with pytest.raises(BadMessageError, match="msg-mine already"):
        store.add_message(talk, None, "user", "Hi", id="msg-mine")


def test_a_parent_is_in_the_same_conversation(store: Store) -> None:
    elsewhere = add_answer(store, "Open?")
    talk = store.start_conversation("ann", "Hi")
    with pytest.raises(BadMessageError, match="name a parent that is"):
        store.add_message(talk, elsewhere, "user", "Hi")


def test_a_system_message_is_no_turn(store: Store) -> None:
    talk = store.start_conversation("ann", "Hi")
    with pytest.raises(BadMessageError, match="unknown role 'system'"):
        store.add_message(talk, None, "system", "Be evil.")  # type: ignore[arg-type]


def test_what_is_not_there_is_named(store: Store) -> None:
    for ask in (store.message, store.thread, store.conversation):
        with pytest.raises(NotFoundError, match="'x-1'") as caught:
            ask("x-1")
        assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("text", ["", "🙂 naïve\n\n  x\t", "'; drop table message; --"])
def test_any_text_comes_back_as_it_was(store: Store, text: str) -> None:
    assert store.message(add_answer(store, "?", text)).content == text


@pytest.mark.parametrize("ill_formed", ["\ud83d", "\0"])
def test_half_a_character_and_nul_do_not_stop_the_store(store: Store, ill_formed: str) -> None:
    assert store.message(add_answer(store, "?", f"bro{ill_formed}ken")).content == "bro\ufffdken"


def test_feedback_comes_back_in_order(store: Store) -> None:
    id = add_answer(store, "Open?")
    given: list[tuple[str, dict[str, Any]]] = [
        ("thumb", {"up": False, "reasons": ["not correct"]}),
        ("comment", {"text": "We open at 9."}),
        ("edit", {"text": "From 9 to 6."}),
        ("signal", {"name": "copy"}),
    ]
    ids = [store.add_feedback(id, "ann", kind, value) for kind, value in given]
    kept = store.feedback_on(id)
    assert [(one.id, one.kind, one.value) for one in kept] == [
        (one, kind, value) for one, (kind, value) in zip(ids, given, strict=True)
    ]


def test_the_same_key_gives_the_same_id_and_keeps_nothing_twice(store: Store) -> None:
    id = add_answer(store, "Open?")
    keys = [store.add_feedback(id, "ann", "thumb", {"up": True}, "key-1") for _ in range(3)]
    assert len(set(keys)) == 1 and len(store.feedback_on(id)) == 1
    assert store.add_feedback(id, "bob", "thumb", {"up": True}, "key-1") != keys[0]


def test_a_key_with_other_content_is_not_acknowledged(store: Store) -> None:
    id = add_answer(store, "Open?")
    store.add_feedback(id, "ann", "thumb", {"up": True}, "key-1")
    with pytest.raises(BadFeedbackError, match="'key-1' came with other feedback"):
        store.add_feedback(id, "ann", "edit", {"text": "From 9."}, "key-1")


def test_a_choice_is_between_two_answers_to_one_message(store: Store) -> None:
    one = add_answer(store, "Open?", "Yes.")
    other = add_retry(store, one, "From 9 to 6.")
    store.add_feedback(other, "ann", "choice", {"over": one})
    stranger = add_answer(store, "Closed?", "No.")
    for over in (stranger, other, store.message(one).parent_id):
        with pytest.raises(BadFeedbackError, match="not two answers to one message"):
            store.add_feedback(other, "ann", "choice", {"over": over})


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("star", {"n": 5}, "unknown kind 'star'; one of thumb, edit"),
        ("thumb", {}, 'needs "up"'),
        ("thumb", {"up": 1}, "true, false or null"),
        ("thumb", {"up": "yes"}, "true, false or null"),
        ("thumb", {"up": True, "why": "x"}, "has no 'why'; it takes reasons, up"),
        ("thumb", {"up": True, "reasons": "bad"}, "list of texts"),
        ("edit", {"text": "  "}, "says something"),
        ("edit", {"text": "x" * 40_000}, "40000 characters; at most"),
        ("comment", {"text": 5}, "says something"),
        ("choice", {"over": None}, "says something"),
        ("signal", {"name": "left"}, "one of copy, retry"),
        ("thumb", [True], "is an object"),
    ],
)
def test_feedback_of_the_wrong_shape_is_refused(
    store: Store, kind: str, value: Any, message: str
) -> None:
    id = add_answer(store, "Open?")
    with pytest.raises(BadFeedbackError, match=message):
        store.add_feedback(id, "ann", kind, value)
    assert store.feedback_on(id) == []


def test_feedback_is_on_answers(store: Store) -> None:
    parent = store.message(add_answer(store, "Open?")).parent_id
    assert parent is not None
    with pytest.raises(BadFeedbackError, match="feedback is on answers"):
        store.add_feedback(parent, "ann", "thumb", {"up": True})
    with pytest.raises(NotFoundError):
        store.add_feedback("msg-nowhere", "ann", "thumb", {"up": True})


def test_counts_tell_how_much_there_is(store: Store) -> None:
    store.add_feedback(add_answer(store, "Open?"), "ann", "thumb", {"up": True})
    counts = store.counts()
    assert (counts["conversations"], counts["messages"], counts["thumbs"]) == (1, 2, 1)


def test_a_write_that_fails_midway_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.write():
        store.start_conversation("ann", "Hi")
        raise RuntimeError
    assert store.counts()["conversations"] == 0


def test_a_full_disk_is_said_and_loses_nothing_acknowledged(store: Store) -> None:
    id = add_answer(store, "Open?")
    pages = store.row("pragma page_count")[0]
    store.row(f"pragma max_page_count = {pages + 8}")
    kept = 0
    with pytest.raises(StoreError, match="disk is full; nothing of this was saved; free some"):
        for _ in range(1000):
            store.add_feedback(id, "ann", "comment", {"text": "x" * 2000})
            kept += 1
    assert 0 < kept == len(Store(store.path).feedback_on(id))


def test_eight_threads_write_and_read_at_once(store: Store) -> None:
    def talk(n: int) -> list[str]:
        mine = []
        for turn in range(25):
            id = add_answer(store, f"Question {turn}?", person=f"p{n}", speaker=SPEAKER)
            mine.append(store.add_feedback(id, f"p{n}", "thumb", {"up": True}, f"{n}-{turn}"))
            assert store.thread(id)[-1].id == id
        return mine

    with ThreadPoolExecutor(8) as pool:
        ids = [id for mine in pool.map(talk, range(8)) for id in mine]
    assert len(set(ids)) == 200 == store.counts()["feedback"]


def test_the_same_key_from_eight_threads_at_once_is_one_row(store: Store) -> None:
    id = add_answer(store, "Open?")
    barrier = threading.Barrier(8)

    def rate(_: int) -> str:
        barrier.wait()
        return store.add_feedback(id, "ann", "thumb", {"up": True}, "same")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(rate, range(8)))) == 1
    assert len(store.feedback_on(id)) == 1


WRITER = """
import sys
from pathlib import Path
from feedback.store import Store
path, message, person, count = sys.argv[1:]
store = Store(Path(path))
for n in range(int(count)):
    id = store.add_feedback(message, person, "comment", {"text": f"{n} " + "word " * 40})
    sys.stdout.write(id + chr(10))
    sys.stdout.flush()
"""


def writer(store: Store, message: str, person: str, count: int) -> subprocess.Popen[str]:
    args = [sys.executable, "-c", WRITER, str(store.path), message, person, str(count)]
    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True)


def test_eight_processes_write_at_once(store: Store) -> None:
    id = add_answer(store, "Open?")
    writers = [writer(store, id, f"p{n}", 40) for n in range(8)]
    acknowledged = [line for one in writers for line in one.communicate()[0].split()]
    assert all(one.returncode == 0 for one in writers)
    assert sorted(acknowledged) == sorted(entry.id for entry in store.feedback_on(id))
    assert len(acknowledged) == 320


@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_by_kill_9(store: Store, seed: int) -> None:
    id = add_answer(store, "Open?")
    child = writer(store, id, "ann", 1_000_000)
    assert child.stdout is not None
    acknowledged = [child.stdout.readline().strip()]
    time.sleep(random.Random(seed).uniform(0.0, 0.3))
    child.send_signal(signal.SIGKILL)
    # The last line may be cut by the pipe's end, not by the store: it was acknowledged whole or
    # not at all.
    acknowledged += [line.strip() for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    after = Store(store.path)
    kept = [entry.id for entry in after.feedback_on(id)]
    assert set(acknowledged) <= set(kept)
    assert len(kept) - len(acknowledged) <= 1
    assert after.row("pragma integrity_check")[0] == "ok"
    assert store.add_feedback(id, "bob", "thumb", {"up": True})


def test_a_thread_that_ends_takes_its_connection_along(store: Store) -> None:
    for _ in range(20):
        thread = threading.Thread(target=store.counts)
        thread.start()
        thread.join()
    assert len(store._thread_connections) == 1


def test_real_dialogues_come_back_word_for_word(store: Store) -> None:
    for turns in public_data.load_dialogues(200):
        talk = store.start_conversation("ann", turns[0])
        parent = None
        for n, text in enumerate(turns):
            role: Role = "assistant" if n % 2 else "user"
            parent = store.add_message(talk, parent, role, text, SPEAKER if n % 2 else None)
        assert parent is not None
        assert [message.content for message in store.thread(parent)] == turns


def held(store: Store, seconds: float) -> threading.Thread:
    """A thread that is in the middle of a write for so long, once it has begun."""
    begun = threading.Event()

    def hold() -> None:
        with store.write():
            begun.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    return thread


def test_a_write_goes_on_as_soon_as_the_one_before_it_has_ended(store: Store) -> None:
    late = []
    for _ in range(2):
        holder, began = held(store, 0.34), time.monotonic()
        store.start_conversation("ann", "Hi")
        late.append(time.monotonic() - began - 0.34)
        holder.join()
    assert min(late) < 0.05, "SQLite would have it sleep until 0.43 s"


def test_a_write_does_not_wait_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.db.database.BUSY_TIMEOUT_SECONDS", 0.05)
    holder = held(store, 0.5)
    with pytest.raises(StoreError, match="another has held it"):
        store.start_conversation("ann", "Hi")
    holder.join()
    store.start_conversation("ann", "Hi")
