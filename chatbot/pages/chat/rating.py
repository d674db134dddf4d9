"""Stores what people say of an answer on the chat page; "Saved" is shown once the store has it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from chatbot.pages.browser_identity import BrowserIdentities, LoginName
from chatbot.pages.chat import transcript
from chatbot.pages.chat.ownership import owned_message
from chatbot.pages.chat.view import (
    REASONS_DOWN,
    REASONS_UP,
    ChatView,
    ChatViews,
    RatedAnswer,
    page_number,
)
from chatbot.pages.text import unescape_markdown

if TYPE_CHECKING:
    from chatbot.service import Service


class RatingActions:
    """Stores thumbs with their reasons, corrections and choices, for all visitors of the page.

    Every action takes the browser's token, stored position and message ids unchecked, and stores
    feedback only on answers of the token's person.
    """

    def __init__(self, service: "Service", identities: BrowserIdentities, views: ChatViews) -> None:
        self._store = service.store
        self._identities = identities
        self._views = views

    def rate(
        self, token: object, stored_position: object, message_id: str | None, liked: object
    ) -> ChatView:
        """Store a thumb up (True), down (False), or taken back (anything else); a thumb given
        opens the card that asks for reasons."""
        _, person = self._identities.identify(token)
        number = page_number(stored_position)
        answer = owned_message(self._store, person, message_id)
        if answer is None:  # one that is still being generated
            return {"number": number, "rated": None}
        up = liked if isinstance(liked, bool) else None
        known = isinstance(token, LoginName)
        self._store.add_feedback(answer.id, person, "thumb", {"up": up}, known=known)
        view: ChatView = {"number": number, "thumb": (answer.id, transcript.thumb_value(up))}
        if up is None:
            return {**view, "rated": None, "toast": "Your thumb is taken back."}
        return {**view, "rated": RatedAnswer(answer.id, up), "toast": "Saved. Thank you."}

    def add_reasons(
        self,
        token: object,
        stored_position: object,
        rated: RatedAnswer | None,
        reasons: list[str],
        comment: str,
    ) -> ChatView:
        """Store why: known reasons join the thumb, the comment is feedback of its own."""
        _, person = self._identities.identify(token)
        view: ChatView = {"number": page_number(stored_position), "rated": None}
        answer = owned_message(self._store, person, rated.message_id if rated else None)
        if rated is None or answer is None:
            return view
        offered = REASONS_UP if rated.up else REASONS_DOWN
        chosen = [reason for reason in reasons if reason in offered]
        comment = comment.strip()
        with self._store.write():
            if chosen:
                thumb = {"up": rated.up, "reasons": chosen}
                known = isinstance(token, LoginName)
                self._store.add_feedback(answer.id, person, "thumb", thumb, known=known)
            if comment:
                self._store.add_feedback(answer.id, person, "comment", {"text": comment})
        return {**view, "toast": "Saved. Thank you."} if chosen or comment else view

    def is_answer(self, token: object, message_id: str) -> bool:
        """Tell whether the message is an answer in a conversation of the token's person."""
        _, person = self._identities.identify(token)
        message = owned_message(self._store, person, message_id)
        return message is not None and message.role == "assistant"

    def correct(
        self, token: object, stored_position: object, message_id: str, text: str
    ) -> ChatView:
        """Store a person's better wording of an answer; it waits for a reviewer."""
        _, person = self._identities.identify(token)
        position = self._views.position(person, stored_position)
        answer = owned_message(self._store, person, message_id)
        correction = unescape_markdown(text).strip()
        shown = transcript.shown_text(self._store, answer.id, person) if answer else ""
        if answer is None or correction in ("", shown.strip()):
            return self._views.whole(person, position)
        self._store.add_feedback(answer.id, person, "edit", {"text": correction})
        toast = "Saved. Thank you, a reviewer will look at it."
        return {**self._views.whole(person, position), "toast": toast}

    def choose(
        self,
        token: object,
        stored_position: object,
        pair: tuple[str, ...],
        preferred: int | None,
    ) -> ChatView:
        """Store which of two answers is better: 0, 1, or None for a tie. The conversation goes on
        from the preferred one."""
        _, person = self._identities.identify(token)
        position = self._views.position(person, stored_position)
        answers = [owned_message(self._store, person, message_id) for message_id in pair]
        if len(answers) != 2 or answers[0] is None or answers[1] is None:
            return self._views.whole(person, position)
        chosen, rejected = answers if not preferred else reversed(answers)
        assert chosen is not None and rejected is not None
        value = {"over": rejected.id} | ({"tie": True} if preferred is None else {})
        known = isinstance(token, LoginName)
        self._store.add_feedback(chosen.id, person, "choice", value, known=known)
        if preferred is not None:
            position = replace(position, conversation=chosen.conversation_id, leaf=chosen.id)
        return {**self._views.whole(person, position), "toast": "Saved. Thank you."}

    def record_copy(self, token: object, stored_position: object, text: object) -> None:
        """Store that somebody copied an answer: a signal to look at, never trained on."""
        _, person = self._identities.identify(token)
        leaf = self._views.position(person, stored_position).leaf
        bubbles = transcript.thread_bubbles(self._store, leaf, person)
        answer = owned_message(self._store, person, transcript.find_answer_id(bubbles, text))
        if answer is not None:
            self._store.add_feedback(answer.id, person, "signal", {"name": "copy"})
