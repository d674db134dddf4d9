"""What the chat page does, without the page: every action gives the views that it leads to.

Nothing here knows Gradio's components; `chat.py` lays them out and paints these views.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from chatbot.engine.protocol import EngineBusyError, PromptTooLongError
from chatbot.pages import theme
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat import ownership, transcript
from chatbot.pages.chat.transcript import Bubble
from chatbot.pages.chat.update_rate import throttled_text
from chatbot.pages.chat.view import BrowserPosition, ChatView
from chatbot.pages.text import unescape_markdown
from chatbot.question import Question, ask
from chatbot.turn import Turn
from feedback.errors import TalkbackError
from feedback.messages import Message

if TYPE_CHECKING:
    from chatbot.service import Service


class ChatActions:
    """The actions of one page for all its visitors."""

    def __init__(self, service: "Service", people: BrowserIdentities) -> None:
        self._service = service
        self._store = service.store
        self._people = people
        self._running: dict[str, Turn] = {}
        self._answers = itertools.count(1)

    def load(self, token: object, kept: object) -> ChatView:
        """Somebody opens the page: who they are, and the conversation they were in."""
        good, person = self._people.identify(token)
        place = ownership.owned_position(self._store, person, BrowserPosition.from_storage(kept))
        return {"token": good, **ownership.view_at(self._store, person, place)}

    def open_conversation(self, token: object, conversation: str) -> ChatView:
        """Another conversation from the list."""
        good, person = self._people.identify(token)
        last = self._store.latest_message(conversation)
        place = ownership.owned_position(
            self._store, person, BrowserPosition(conversation, last.id if last else None)
        )
        return {"token": good, **ownership.view_at(self._store, person, place)}

    def start_conversation(self, token: object) -> ChatView:
        """A new conversation; it is stored with its first message."""
        good, person = self._people.identify(token)
        return {"token": good, **ownership.view_at(self._store, person, BrowserPosition())}

    def send(self, token: object, kept: object, text: str, session: str) -> Iterator[ChatView]:
        """Say something at the end of the thread."""
        good, person = self._people.identify(token)
        place = ownership.owned_position(self._store, person, BrowserPosition.from_storage(kept))
        if text.strip():
            views = self._answer(person, place, text.strip(), session)
            yield {"token": good, **next(views)}
            yield from views

    def edit(
        self, token: object, kept: object, message_id: str, text: str, session: str
    ) -> Iterator[ChatView]:
        """Say one's own message differently: a new branch from the turn before it."""
        _, person = self._people.identify(token)
        before = ownership.owned_message(self._store, person, message_id)
        here = ownership.owned_position(self._store, person, BrowserPosition.from_storage(kept))
        text = unescape_markdown(text).strip()
        if before is None or not text or text == before.content:
            yield ownership.view_at(self._store, person, here)
            return
        place = BrowserPosition(before.conversation_id, before.parent_id)
        yield from self._answer(person, place, text, session, instead=here)

    def retry(self, token: object, kept: object, session: str) -> Iterator[ChatView]:
        """Another answer to the last question, and then: which one is better?"""
        _, person = self._people.identify(token)
        here = ownership.owned_position(self._store, person, BrowserPosition.from_storage(kept))
        old = ownership.owned_message(self._store, person, here.leaf)
        asked = ownership.owned_message(self._store, person, old.parent_id) if old else None
        if old is None or asked is None or old.role != "assistant":
            yield ownership.view_at(self._store, person, here)
            return
        place = BrowserPosition(asked.conversation_id, asked.parent_id)
        yield from self._answer(person, place, asked.content, session, instead=here, retry_of=old)

    def undo(self, token: object, kept: object) -> ChatView:
        """Take the last exchange back into the line to write in. What was said stays stored."""
        _, person = self._people.identify(token)
        here = ownership.owned_position(self._store, person, BrowserPosition.from_storage(kept))
        leaf = ownership.owned_message(self._store, person, here.leaf)
        asked = ownership.owned_message(self._store, person, leaf.parent_id) if leaf else None
        if asked is None:
            return ownership.view_at(self._store, person, here)
        place = BrowserPosition(asked.conversation_id, asked.parent_id)
        return {**ownership.view_at(self._store, person, place), "draft": asked.content}

    def stop_generation(self, session: str) -> None:
        """End the answer that streams to this browser tab; what has come is kept."""
        turn = self._running.get(session)
        if turn is not None:
            turn.cancel()

    def _answer(
        self,
        person: str,
        place: BrowserPosition,
        text: str,
        session: str,
        *,
        instead: BrowserPosition | None = None,
        retry_of: Message | None = None,
    ) -> Iterator[ChatView]:
        """Stream one answer to `text` said at `place`; on failure the page is back at `instead`.

        Until it has ended only the first view tells the thumbs: those of the answers that stay.
        """
        self.stop_generation(session)
        rows = transcript.thread_bubbles(self._store, place.leaf, person)
        thumbs = transcript.thumb_values(self._store, rows, person)
        rows.append(transcript.message_bubble("user", text))
        yield {
            "rows": [*rows, transcript.TYPING],
            "thumbs": thumbs,
            "draft": "",
            "busy": True,
            "notice": "",
            "pair": None,
            "rated": None,
        }
        try:
            turn = self._ask(person, place, text, retry_of)
        except TalkbackError as error:
            yield self._refused(person, instead or place, "" if retry_of else text, error)
            return
        yield from self._stream(turn, session, rows)
        yield from self._settle(person, turn, retry_of, session)

    def _stream(self, turn: Turn, session: str, rows: list[Bubble]) -> Iterator[ChatView]:
        self._running[session] = turn
        try:
            for text in throttled_text(turn):
                yield {"rows": [*rows, transcript.message_bubble("assistant", text)]}
        finally:
            turn.close()
            if self._running.get(session) is turn:
                del self._running[session]

    def _settle(
        self, person: str, turn: Turn, retry_of: Message | None, session: str
    ) -> Iterator[ChatView]:
        """The answer is stored: show the thread as it is kept, and perhaps offer a choice."""
        place = BrowserPosition(turn.conversation_id, turn.message_id)
        view = ownership.view_at(self._store, person, place)
        if retry_of is not None:
            view["pair"] = self._pair(retry_of.id, turn.message_id)
        yield view
        if retry_of is None and self._choice_is_due(turn):
            yield from self._second_answer(person, turn, session)

    def _choice_is_due(self, turn: Turn) -> bool:
        """Every n-th whole answer of the model is offered beside a second one."""
        every = self._service.chat_settings.choice_every
        whole = turn.speaker.source == "model" and turn.speaker.finish == "stop"
        return bool(every) and whole and next(self._answers) % every == 0

    def _second_answer(self, person: str, turn: Turn, session: str) -> Iterator[ChatView]:
        """Another answer to the same question, made out of sight, to choose between the two."""
        asked = self._store.message(turn.user_message_id)
        first = self._store.message(turn.message_id)
        yield {"busy": True, "notice": theme.banner("A second answer is on its way, to compare.")}
        try:
            place = BrowserPosition(asked.conversation_id, asked.parent_id)
            second = self._ask(person, place, asked.content, first)
            for _ in self._stream(second, session, []):
                pass
        except TalkbackError:
            yield {"busy": False, "notice": ""}  # the first answer stands, so nothing is amiss
            return
        yield {"busy": False, "notice": "", "pair": self._pair(first.id, second.message_id)}

    def _pair(self, first: str, second: str) -> tuple[str, str] | None:
        """The two answers, unless there is nothing to choose."""
        words = {self._store.message(answer).content.strip() for answer in (first, second)}
        return (first, second) if len(words - {""}) == 2 else None

    def _ask(
        self, person: str, place: BrowserPosition, text: str, retry_of: Message | None
    ) -> Turn:
        question = Question(
            text,
            person=person,
            conversation_id=place.conversation,
            parent_id=place.leaf,
            retry_of=retry_of.id if retry_of else None,
        )
        return ask(self._service, question).begin()

    def _refused(
        self, person: str, place: BrowserPosition, draft: str, error: TalkbackError
    ) -> ChatView:
        """Nothing could be said: why, and the words are back in the line to write in."""
        view = ownership.view_at(self._store, person, place)
        view["notice"] = _error_banner(error)
        return {**view, "draft": draft} if draft else view


def _error_banner(error: TalkbackError) -> str:
    """What went wrong, for people who know nothing of queues and tokens."""
    match error:
        case EngineBusyError(retry_after=seconds):
            wait = "a moment" if seconds < 5 else f"{seconds:.0f} seconds"
            return theme.banner(f"Many people are asking just now. Try again in {wait}.", "warn")
        case PromptTooLongError():
            return theme.banner("This is too long to answer. Shorten it and send it again.", "warn")
    return theme.banner(str(error), "error")
