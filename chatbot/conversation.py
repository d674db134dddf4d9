"""Where in which conversation a question stands, and whether it may stand there."""

from dataclasses import dataclass, field, replace

from feedback.errors import TalkbackError
from feedback.store import BadMessageError, Message, Store


class Forbidden(TalkbackError):
    """The conversation is another person's."""


class Empty(TalkbackError):
    """Nothing was asked."""


@dataclass(frozen=True)
class Place:
    """Where in which conversation a question stands; its id is "" until it is stored."""

    conversation_id: str | None
    parent_id: str | None
    question_id: str
    question: str
    history: list[Message]
    again_after: str | None = None
    """The id of the answer that is asked for again."""
    given: list[Message] = field(default_factory=list)
    """Turns after the history that are not stored yet."""

    @property
    def before(self) -> list[Message]:
        """All that was said before the question."""
        return [*self.history, *self.given]


def find(
    store: Store,
    conversation_id: str | None,
    person: str,
    parent_id: str | None,
    text: str,
    retry_of: str | None,
) -> Place:
    """Where the question goes, checked: nobody reads or continues another's conversation."""
    question_id = ""
    if retry_of is not None:
        *_, question, answer = [None, *store.thread(retry_of)]
        if question is None or answer is None or answer.role != "assistant":
            raise BadMessageError(f"{retry_of} is not an answer; only answers are asked for again")
        question_id, text, parent_id = question.id, question.content, question.parent_id
        conversation_id = question.conversation_id
    history = store.thread(parent_id) if parent_id else []
    if history and conversation_id is None:
        conversation_id = history[-1].conversation_id
    if conversation_id is not None and store.conversation(conversation_id).person != person:
        raise Forbidden(f"{conversation_id} is not a conversation of {person}")
    if history and history[-1].conversation_id != conversation_id:
        raise BadMessageError(f"{parent_id} is not in {conversation_id}; name a message that is")
    if not text.strip():
        raise Empty("There is nothing to answer. Say something.")
    return Place(conversation_id, parent_id, question_id, text, history, retry_of)


def keep(store: Store, place: Place, person: str) -> Place:
    """The place with its question on the disk, in a conversation that exists."""
    if place.question_id:
        return place
    parent = place.parent_id
    opening = place.given[0].content if place.given else place.question
    with store.write():
        talk = place.conversation_id or store.start_conversation(person, opening)
        for message in place.given:
            parent = store.add_message(talk, parent, message.role, message.content)
        asked = store.add_message(talk, parent, "user", place.question)
    return replace(place, conversation_id=talk, question_id=asked)
