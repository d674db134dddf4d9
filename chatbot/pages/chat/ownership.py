"""Checks whose a message or a conversation is: the browser only names ids, and a person sees and
changes their own conversations alone."""

from feedback.messages import Message, NotFoundError
from feedback.store import Store


def owned_message(store: Store, person: str, message_id: str | None) -> Message | None:
    """Return the message if it is in a conversation of this person, else None."""
    if not message_id:
        return None
    try:
        message = store.message(message_id)
    except NotFoundError:
        return None
    owner = store.conversation(message.conversation_id).person
    return message if owner == person else None


def owned_leaf(
    store: Store, person: str, conversation_id: str | None, leaf_id: str | None
) -> tuple[str | None, Message | None]:
    """Return the conversation's id and the message in it if both are this person's; (None, None)
    if not. A conversation may be named alone: nothing of it is shown then."""
    leaf = owned_message(store, person, leaf_id)
    if leaf is not None and leaf.conversation_id == conversation_id:
        return conversation_id, leaf
    if leaf_id or not _owns_conversation(store, person, conversation_id):
        return None, None
    return conversation_id, None


def _owns_conversation(store: Store, person: str, conversation_id: str | None) -> bool:
    if not conversation_id:
        return False
    try:
        return store.conversation(conversation_id).person == person
    except NotFoundError:
        return False
