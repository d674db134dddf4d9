"""Tests what the chat page reads of a thread."""

from pathlib import Path

from chatbot.pages.chat.transcript import thread_bubbles
from feedback.messages import Speaker
from feedback.store import Store
from tests.fixtures.conversations import add_answer


def test_a_thread_is_read_in_a_few_queries_however_long_it_is(tmp_path: Path) -> None:
    counts = []
    for turns in (2, 20):
        store = Store(tmp_path / f"{turns}.db")
        leaf, conversation = None, store.start_conversation("ann", "Hello")
        for _ in range(turns):
            leaf = store.add_message(conversation, leaf, "user", "Hello")
            leaf = store.add_message(conversation, leaf, "assistant", "Hi", Speaker("a", "b"))
            store.add_feedback(leaf, "ann", "edit", {"text": "Hello!"})
        statements: list[str] = []
        with store.write() as db:
            db.set_trace_callback(statements.append)
        assert len(thread_bubbles(store, leaf, "ann")) == 3 * turns
        counts.append(len(statements))
        store.close()
    assert counts[0] == counts[1] <= 5, statements


def test_a_thumb_can_turn_and_be_taken_back(store: Store) -> None:
    answer = add_answer(store, "Open?")
    seen = []
    for up in (True, False, None):
        store.add_feedback(answer, "ann", "thumb", {"up": up})
        store.add_feedback(answer, "bob", "thumb", {"up": True})
        seen.append(thread_bubbles(store, answer, "ann")[-1].get("thumb"))
    assert seen == ["Like", "Dislike", None]
