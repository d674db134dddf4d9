"""Whose is what: the browser only names ids, and only a person's own talk is shown or changed."""

from chatbot.pages.chat import transcript
from chatbot.pages.chat.view import Place, View
from chatbot.pages.text import excerpt
from feedback.store import Message, NotFound, Store


def mine(store: Store, person: str, message_id: str | None) -> Message | None:
    """The message, if it is in a conversation of this person."""
    if not message_id:
        return None
    try:
        message = store.message(message_id)
    except NotFound:
        return None
    owner = store.conversation(message.conversation_id).person
    return message if owner == person else None


def own(store: Store, person: str, place: Place) -> Place:
    """The place, if it is this person's; else the empty page."""
    leaf = mine(store, person, place.leaf)
    if leaf is not None and leaf.conversation_id == place.conversation:
        return place
    if place.leaf or not _has(store, person, place.conversation):
        return Place()
    return place


def at(store: Store, person: str, place: Place) -> View:
    """The whole page as it stands at `place`, with nothing under way."""
    rows = transcript.bubbles(store, place.leaf, person)
    return {
        "place": place,
        "rows": rows,
        "thumbs": transcript.thumbs(store, rows, person),
        "titles": [(excerpt(c.title, 48), c.id) for c in store.conversations(person)],
        "busy": False,
        "notice": "",
        "pair": None,
        "rated": None,
    }


def _has(store: Store, person: str, conversation: str | None) -> bool:
    return any(each.id == conversation for each in store.conversations(person))
