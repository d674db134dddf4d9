"""What people say of an answer on the chat page; "saved" is said once the store has it."""

from typing import TYPE_CHECKING

from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat import ownership
from chatbot.pages.chat.view import BrowserPosition, ChatView, RatedAnswer
from chatbot.pages.text import unescape_markdown

if TYPE_CHECKING:
    from chatbot.service import Service

REASONS_DOWN = ("Wrong fact", "Not what I asked", "Unclear", "Too long", "Unkind or unsafe")
REASONS_UP = ("Right", "Clear", "Complete", "Friendly")


class RatingActions:
    """Thumbs with their reasons, corrections and choices, for all visitors of the page."""

    def __init__(self, service: "Service", people: BrowserIdentities) -> None:
        self._store = service.store
        self._people = people

    def thumb(self, token: object, message_id: str | None, liked: object) -> ChatView:
        """A thumb up, down, or taken back; the reasons are asked for afterwards."""
        _, person = self._people.identify(token)
        answer = ownership.owned_message(self._store, person, message_id)
        if answer is None:  # one that is still on its way
            return {"rated": None}
        up = liked if isinstance(liked, bool) else None
        self._store.add_feedback(answer.id, person, "thumb", {"up": up})
        if up is None:
            return {"rated": None, "toast": "Your thumb is taken back."}
        return {"rated": RatedAnswer(answer.id, up), "toast": "Saved. Thank you."}

    def explain(
        self, token: object, rated: RatedAnswer | None, reasons: list[str], comment: str
    ) -> ChatView:
        """Why: the reasons join the thumb, the comment stands by itself."""
        _, person = self._people.identify(token)
        answer = ownership.owned_message(self._store, person, rated.message if rated else None)
        if rated is None or answer is None:
            return {"rated": None}
        known = REASONS_UP if rated.up else REASONS_DOWN
        given = [reason for reason in reasons if reason in known]
        with self._store.write():
            if given:
                thumb = {"up": rated.up, "reasons": given}
                self._store.add_feedback(answer.id, person, "thumb", thumb)
            if comment.strip():
                self._store.add_feedback(answer.id, person, "comment", {"text": comment.strip()})
        said = bool(given or comment.strip())
        return {"rated": None, "toast": "Saved. Thank you."} if said else {"rated": None}

    def correct(self, token: object, kept: object, message_id: str, text: str) -> ChatView:
        """A person's better wording of an answer; it waits for a reviewer."""
        _, person = self._people.identify(token)
        place = ownership.owned_position(self._store, person, BrowserPosition.from_storage(kept))
        answer = ownership.owned_message(self._store, person, message_id)
        better = unescape_markdown(text).strip()
        if answer is None or not better or better == answer.content.strip():
            return ownership.view_at(self._store, person, place)
        self._store.add_feedback(answer.id, person, "edit", {"text": better})
        view = ownership.view_at(self._store, person, place)
        view["toast"] = "Saved. Thank you, a reviewer will look at it."
        return view

    def choose(
        self, token: object, kept: object, pair: tuple[str, str] | None, which: int | None
    ) -> ChatView:
        """The better one of two answers, or neither (None); the talk goes on from it."""
        _, person = self._people.identify(token)
        place = ownership.owned_position(self._store, person, BrowserPosition.from_storage(kept))
        answers = [ownership.owned_message(self._store, person, name) for name in pair or ()]
        if len(answers) != 2 or answers[0] is None or answers[1] is None:
            return ownership.view_at(self._store, person, place)
        best, other = answers if not which else reversed(answers)
        assert best is not None and other is not None
        value = {"over": other.id} | ({"tie": True} if which is None else {})
        self._store.add_feedback(best.id, person, "choice", value)
        if which is not None:
            place = BrowserPosition(best.conversation_id, best.id)
        view = ownership.view_at(self._store, person, place)
        view["toast"] = "Saved. Thank you."
        return view

    def copied(self, token: object, message_id: str | None) -> None:
        """Somebody copied an answer: watched, never trained on."""
        _, person = self._people.identify(token)
        answer = ownership.owned_message(self._store, person, message_id)
        if answer is not None and answer.role == "assistant":
            self._store.add_feedback(answer.id, person, "signal", {"name": "copy"})
