"""Finds and checks where in which conversation a question stands, and stores it there."""

from dataclasses import dataclass, field, replace

from feedback.errors import TalkbackError
from feedback.messages import BadMessageError, Message
from feedback.store import Store


class ForbiddenError(TalkbackError):
    """Says that the conversation is another person's."""


class EmptyQuestionError(TalkbackError):
    """Says that the question has no text."""


@dataclass(frozen=True)
class QuestionPosition:
    """Holds a question and where it stands; ``question_id`` is "" until the question is stored."""

    conversation_id: str | None
    parent_id: str | None
    question_id: str
    question: str
    history: list[Message]
    retry_of: str | None = None
    """The id of the earlier answer whose question is asked again."""
    unstored_history: list[Message] = field(default_factory=list)
    """Turns after the history that are not stored yet."""

    @property
    def full_history(self) -> list[Message]:
        """Return all messages before the question, stored or not."""
        return [*self.history, *self.unstored_history]


def find_position(
    store: Store,
    conversation_id: str | None,
    person: str,
    parent_id: str | None,
    text: str,
    retry_of: str | None,
) -> QuestionPosition:
    """Return where a question goes, and check that it may: nobody reads or continues another's
    conversation.

    ``conversation_id`` None starts a conversation, or takes that of ``parent_id``. With
    ``retry_of`` the earlier answer's question replaces ``text`` and ``parent_id``.
    Raises NotFoundError, BadMessageError, ForbiddenError, EmptyQuestionError.
    """
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
        raise ForbiddenError(f"{conversation_id} is not a conversation of {person}")
    if history and history[-1].conversation_id != conversation_id:
        raise BadMessageError(f"{parent_id} is not in {conversation_id}; name a message that is")
    if not text.strip():
        raise EmptyQuestionError("There is nothing to answer. Say something.")
    return QuestionPosition(conversation_id, parent_id, question_id, text, history, retry_of)


def store_question(store: Store, position: QuestionPosition, person: str) -> QuestionPosition:
    """Store the question and the history before it, in a new conversation if it has none.

    Returns the position with both ids. A question that is asked again is stored already.
    """
    if position.question_id:
        return position
    parent = position.parent_id
    opening = (
        position.unstored_history[0].content if position.unstored_history else position.question
    )
    with store.write():
        conversation_id = position.conversation_id or store.start_conversation(person, opening)
        for message in position.unstored_history:
            parent = store.add_message(conversation_id, parent, message.role, message.content)
        question_id = store.add_message(conversation_id, parent, "user", position.question)
    return replace(position, conversation_id=conversation_id, question_id=question_id)
