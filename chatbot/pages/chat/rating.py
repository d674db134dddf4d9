"""Stores what people say of an answer on the chat page; "Saved" is shown once the store has it."""

from typing import TYPE_CHECKING

from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat.ownership import owned_message, read_position
from chatbot.pages.chat.view import BrowserPosition, ChatView, RatedAnswer, view_at
from chatbot.pages.text import unescape_markdown

if TYPE_CHECKING:
    from chatbot.service import Service

REASONS_DOWN = ("Wrong fact", "Not what I asked", "Unclear", "Too long", "Unkind or unsafe")
REASONS_UP = ("Right", "Clear", "Complete", "Friendly")


class RatingActions:
    """Stores thumbs with their reasons, corrections and choices, for all visitors of the page.

    Every action takes the browser's token and message ids unchecked, and stores feedback only on
    answers of the token's person.
    """

    def __init__(self, service: "Service", identities: BrowserIdentities) -> None:
        self._store = service.store
        self._identities = identities

    def rate(self, token: object, message_id: str | None, liked: object) -> ChatView:
        """Store a thumb up (True), down (False), or taken back (anything else); a thumb given
        opens the card that asks for reasons."""
        _, person = self._identities.identify(token)
        answer = owned_message(self._store, person, message_id)
        if answer is None:  # one that is still being generated
            return {"rated": None}
        up = liked if isinstance(liked, bool) else None
        self._store.add_feedback(answer.id, person, "thumb", {"up": up})
        if up is None:
            return {"rated": None, "toast": "Your thumb is taken back."}
        return {"rated": RatedAnswer(answer.id, up), "toast": "Saved. Thank you."}

    def add_reasons(
        self, token: object, rated: RatedAnswer | None, reasons: list[str], comment: str
    ) -> ChatView:
        """Store why: known reasons join the thumb, the comment is feedback of its own."""
        _, person = self._identities.identify(token)
        answer = owned_message(self._store, person, rated.message_id if rated else None)
        if rated is None or answer is None:
            return {"rated": None}
        offered = REASONS_UP if rated.up else REASONS_DOWN
        chosen = [reason for reason in reasons if reason in offered]
        comment = comment.strip()
        with self._store.write():
            if chosen:
                thumb = {"up": rated.up, "reasons": chosen}
                self._store.add_feedback(answer.id, person, "thumb", thumb)
            if comment:
                self._store.add_feedback(answer.id, person, "comment", {"text": comment})
        if not chosen and not comment:
            return {"rated": None}
        return {"rated": None, "toast": "Saved. Thank you."}

    def correct(
        self, token: object, stored_position: object, message_id: str, text: str
    ) -> ChatView:
        """Store a person's better wording of an answer; it waits for a reviewer."""
        _, person = self._identities.identify(token)
        position = read_position(self._store, person, stored_position)
        answer = owned_message(self._store, person, message_id)
        correction = unescape_markdown(text).strip()
        if answer is None or not correction or correction == answer.content.strip():
            return view_at(self._store, person, position)
        self._store.add_feedback(answer.id, person, "edit", {"text": correction})
        view = view_at(self._store, person, position)
        view["toast"] = "Saved. Thank you, a reviewer will look at it."
        return view

    def choose(
        self,
        token: object,
        stored_position: object,
        pair: tuple[str, str] | None,
        preferred: int | None,
    ) -> ChatView:
        """Store which of two answers is better: 0, 1, or None for a tie. The conversation goes on
        from the preferred one."""
        _, person = self._identities.identify(token)
        position = read_position(self._store, person, stored_position)
        answers = [owned_message(self._store, person, message_id) for message_id in pair or ()]
        if len(answers) != 2 or answers[0] is None or answers[1] is None:
            return view_at(self._store, person, position)
        chosen, rejected = answers if not preferred else reversed(answers)
        assert chosen is not None and rejected is not None
        value = {"over": rejected.id} | ({"tie": True} if preferred is None else {})
        self._store.add_feedback(chosen.id, person, "choice", value)
        if preferred is not None:
            position = BrowserPosition(chosen.conversation_id, chosen.id)
        view = view_at(self._store, person, position)
        view["toast"] = "Saved. Thank you."
        return view

    def record_copy(self, token: object, message_id: str | None) -> None:
        """Store that somebody copied an answer: a signal to look at, never trained on."""
        _, person = self._identities.identify(token)
        answer = owned_message(self._store, person, message_id)
        if answer is not None and answer.role == "assistant":
            self._store.add_feedback(answer.id, person, "signal", {"name": "copy"})
