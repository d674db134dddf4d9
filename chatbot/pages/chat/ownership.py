"""Checks whose a message or a conversation is: the browser only names ids, and a person sees and
changes their own conversations alone."""

from chatbot.pages.chat.view import BrowserPosition
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


def owned_position(store: Store, person: str, position: BrowserPosition) -> BrowserPosition:
    """Return the position if it is in a conversation of this person, else that of an empty page."""
    leaf = owned_message(store, person, position.leaf)
    if leaf is not None and leaf.conversation_id == position.conversation:
        return position
    if position.leaf or not _owns_conversation(store, person, position.conversation):
        return BrowserPosition()
    return position


def read_position(store: Store, person: str, stored: object) -> BrowserPosition:
    """Return the position in a browser's storage, which may hold anything, if it is this
    person's, else that of an empty page."""
    return owned_position(store, person, BrowserPosition.from_storage(stored))


def _owns_conversation(store: Store, person: str, conversation_id: str | None) -> bool:
    return any(known.id == conversation_id for known in store.conversations(person))
