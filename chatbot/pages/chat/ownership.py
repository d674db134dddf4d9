"""Whose is what: the browser only names ids, and only a person's own talk is shown or changed."""

from chatbot.pages.chat import transcript
from chatbot.pages.chat.view import BrowserPosition, ChatView
from chatbot.pages.text import truncate
from feedback.messages import Message, NotFoundError
from feedback.store import Store


def owned_message(store: Store, person: str, message_id: str | None) -> Message | None:
    """The message, if it is in a conversation of this person."""
    if not message_id:
        return None
    try:
        message = store.message(message_id)
    except NotFoundError:
        return None
    owner = store.conversation(message.conversation_id).person
    return message if owner == person else None


def owned_position(store: Store, person: str, place: BrowserPosition) -> BrowserPosition:
    """The place, if it is this person's; else the empty page."""
    leaf = owned_message(store, person, place.leaf)
    if leaf is not None and leaf.conversation_id == place.conversation:
        return place
    if place.leaf or not _owns_conversation(store, person, place.conversation):
        return BrowserPosition()
    return place


def view_at(store: Store, person: str, place: BrowserPosition) -> ChatView:
    """The whole page as it stands at `place`, with nothing under way."""
    rows = transcript.thread_bubbles(store, place.leaf, person)
    return {
        "place": place,
        "rows": rows,
        "thumbs": transcript.thumb_values(store, rows, person),
        "titles": [(truncate(c.title, 48), c.id) for c in store.conversations(person)],
        "busy": False,
        "notice": "",
        "pair": None,
        "rated": None,
    }


def _owns_conversation(store: Store, person: str, conversation: str | None) -> bool:
    return any(each.id == conversation for each in store.conversations(person))
