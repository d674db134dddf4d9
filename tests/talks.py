"""Small talks for tests: someone asks, the bot answers, people say what they think of it."""

from collections.abc import Sequence

from feedback.store import Speaker, Store

SPEAKER = Speaker(adapter="a-000000000000", base="tiny")


def answer(
    store: Store,
    question: str,
    text: str = "No idea.",
    *,
    person: str = "ann",
    earlier: Sequence[tuple[str, str]] = (),
    speaker: Speaker | None = SPEAKER,
) -> str:
    """Ask in a new conversation, after ``earlier`` turns; the answer's message id."""
    talk = store.start_conversation(person, question)
    parent = None
    for asked, said in [*earlier, (question, text)]:
        turn = store.add_message(talk, parent, "user", asked)
        parent = store.add_message(talk, turn, "assistant", said, speaker)
    assert parent is not None
    return parent


def retry(store: Store, message_id: str, text: str, speaker: Speaker | None = SPEAKER) -> str:
    """Another answer to the same question."""
    first = store.message(message_id)
    return store.add_message(first.conversation_id, first.parent_id, "assistant", text, speaker)
