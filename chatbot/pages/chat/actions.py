"""Carries out what people do on the chat page: each action yields the views that it leads to.

Nothing here knows Gradio's components: `layout.py` makes them, and `paint.py` turns these views
into changes of them.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from markupsafe import Markup

from chatbot.engine.protocol import EngineBusyError, PromptTooLongError
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat import transcript
from chatbot.pages.chat.ownership import owned_message, owned_position, read_position
from chatbot.pages.chat.transcript import Bubble
from chatbot.pages.chat.update_rate import throttled_text
from chatbot.pages.chat.view import BrowserPosition, ChatView, view_at
from chatbot.pages.fragments import banner
from chatbot.pages.text import unescape_markdown
from chatbot.question import Question, ask
from chatbot.turn import Turn
from feedback.errors import TalkbackError
from feedback.messages import Message

if TYPE_CHECKING:
    from chatbot.service import Service


class ChatActions:
    """Carries out the chat actions of all visitors of the page.

    Every action takes the browser's token, stored position and ids unchecked: a person reaches
    their own conversations alone, and anything else leads to an empty page.
    """

    def __init__(self, service: "Service", identities: BrowserIdentities) -> None:
        self._service = service
        self._store = service.store
        self._identities = identities
        self._running: dict[str, Turn] = {}
        """The turn that streams to each browser tab, by its Gradio session."""
        self._answer_count = itertools.count(1)

    def load(self, token: object, stored_position: object) -> ChatView:
        """Open the page for a browser: who uses it, and the conversation it had open."""
        valid_token, person = self._identities.identify(token)
        position = read_position(self._store, person, stored_position)
        return {"token": valid_token, **self._view_at(person, position)}

    def open_conversation(self, token: object, conversation_id: str) -> ChatView:
        """Open another conversation from the list."""
        valid_token, person = self._identities.identify(token)
        newest = self._store.latest_message(conversation_id)
        position = BrowserPosition(conversation_id, newest.id if newest else None)
        position = owned_position(self._store, person, position)
        return {"token": valid_token, **self._view_at(person, position)}

    def start_conversation(self, token: object) -> ChatView:
        """Open an empty conversation; it is stored with its first message."""
        valid_token, person = self._identities.identify(token)
        return {"token": valid_token, **self._view_at(person, BrowserPosition())}

    def send(
        self, token: object, stored_position: object, text: str, session: str
    ) -> Iterator[ChatView]:
        """Send a message at the end of the thread and stream the answer."""
        valid_token, person = self._identities.identify(token)
        position = read_position(self._store, person, stored_position)
        if not text.strip():
            yield {"token": valid_token}
            return
        views = self._stream_answer(person, position, text.strip(), session)
        yield {"token": valid_token, **next(views)}
        yield from views

    def edit(
        self, token: object, stored_position: object, message_id: str, text: str, session: str
    ) -> Iterator[ChatView]:
        """Send the person's message with another text: a new branch from the turn before it."""
        _, person = self._identities.identify(token)
        edited = owned_message(self._store, person, message_id)
        current = read_position(self._store, person, stored_position)
        text = unescape_markdown(text).strip()
        if edited is None or not text or text == edited.content:
            yield self._view_at(person, current)
            return
        position = BrowserPosition(edited.conversation_id, edited.parent_id)
        yield from self._stream_answer(person, position, text, session, fallback=current)

    def retry(self, token: object, stored_position: object, session: str) -> Iterator[ChatView]:
        """Stream another answer to the last question, then ask which of the two is better."""
        _, person = self._identities.identify(token)
        current = read_position(self._store, person, stored_position)
        answer = owned_message(self._store, person, current.leaf)
        question = owned_message(self._store, person, answer.parent_id) if answer else None
        if answer is None or question is None or answer.role != "assistant":
            yield self._view_at(person, current)
            return
        position = BrowserPosition(question.conversation_id, question.parent_id)
        yield from self._stream_answer(
            person, position, question.content, session, fallback=current, retry_of=answer
        )

    def undo(self, token: object, stored_position: object) -> ChatView:
        """Step back before the last exchange, its question in the composer; both stay stored."""
        _, person = self._identities.identify(token)
        current = read_position(self._store, person, stored_position)
        leaf = owned_message(self._store, person, current.leaf)
        question = owned_message(self._store, person, leaf.parent_id) if leaf else None
        if question is None:
            return self._view_at(person, current)
        position = BrowserPosition(question.conversation_id, question.parent_id)
        return {**self._view_at(person, position), "draft": question.content}

    def stop_generation(self, session: str) -> None:
        """Cancel the answer that streams to this browser tab; the text so far is stored."""
        turn = self._running.get(session)
        if turn is not None:
            turn.cancel()

    def _view_at(self, person: str, position: BrowserPosition) -> ChatView:
        return view_at(self._store, person, position)

    def _stream_answer(
        self,
        person: str,
        position: BrowserPosition,
        text: str,
        session: str,
        *,
        fallback: BrowserPosition | None = None,
        retry_of: Message | None = None,
    ) -> Iterator[ChatView]:
        """Stream one answer to `text` sent at `position`; on failure the page shows `fallback`.

        Until the answer has ended only the first view sets thumbs: those of the answers that stay.
        """
        self.stop_generation(session)
        bubbles = transcript.thread_bubbles(self._store, position.leaf, person)
        thumbs = transcript.thumb_values(self._store, bubbles, person)
        bubbles.append(transcript.message_bubble("user", text))
        yield {
            "bubbles": [*bubbles, transcript.TYPING],
            "thumbs": thumbs,
            "draft": "",
            "busy": True,
            "banner": "",
            "pair": None,
            "rated": None,
        }
        try:
            turn = self._begin_turn(person, position, text, retry_of)
        except TalkbackError as error:
            draft = "" if retry_of else text
            yield self._failure_view(person, fallback or position, draft, error)
            return
        yield from self._stream_text(turn, session, bubbles)
        yield from self._show_stored_answer(person, turn, retry_of, session)

    def _stream_text(self, turn: Turn, session: str, bubbles: list[Bubble]) -> Iterator[ChatView]:
        """Yield `bubbles` with the growing answer below them, until its stream ends."""
        self._running[session] = turn
        try:
            for text in throttled_text(turn):
                yield {"bubbles": [*bubbles, transcript.message_bubble("assistant", text)]}
        finally:
            turn.close()
            if self._running.get(session) is turn:  # not when a newer turn has taken its slot
                del self._running[session]

    def _show_stored_answer(
        self, person: str, turn: Turn, retry_of: Message | None, session: str
    ) -> Iterator[ChatView]:
        """Show the thread as it is stored now, and offer a comparison where one is due."""
        view = self._view_at(person, BrowserPosition(turn.conversation_id, turn.message_id))
        if retry_of is not None:
            view["pair"] = self._distinct_pair(retry_of.id, turn.message_id)
        yield view
        if retry_of is None and self._is_choice_due(turn):
            yield from self._offer_second_answer(person, turn, session)

    def _is_choice_due(self, turn: Turn) -> bool:
        """Tell whether this is every n-th complete answer of the model (`choice_every`)."""
        every = self._service.chat_settings.choice_every
        complete = turn.speaker.source == "model" and turn.speaker.finish == "stop"
        return bool(every) and complete and next(self._answer_count) % every == 0

    def _offer_second_answer(self, person: str, turn: Turn, session: str) -> Iterator[ChatView]:
        """Generate another answer to the same question out of sight, then offer both."""
        question = self._store.message(turn.user_message_id)
        first = self._store.message(turn.message_id)
        yield {"busy": True, "banner": banner("A second answer is on its way, to compare.")}
        try:
            position = BrowserPosition(question.conversation_id, question.parent_id)
            second = self._begin_turn(person, position, question.content, first)
            for _ in self._stream_text(second, session, []):
                pass
        except TalkbackError:
            yield {"busy": False, "banner": ""}  # the first answer stands, so nothing is amiss
            return
        pair = self._distinct_pair(first.id, second.message_id)
        yield {"busy": False, "banner": "", "pair": pair}

    def _distinct_pair(self, first: str, second: str) -> tuple[str, str] | None:
        """Return the two answers' ids, None when one is empty or they are the same."""
        texts = {self._store.message(answer).content.strip() for answer in (first, second)}
        return (first, second) if len(texts - {""}) == 2 else None

    def _begin_turn(
        self, person: str, position: BrowserPosition, text: str, retry_of: Message | None
    ) -> Turn:
        question = Question(
            text,
            person=person,
            conversation_id=position.conversation,
            parent_id=position.leaf,
            retry_of=retry_of.id if retry_of else None,
        )
        return ask(self._service, question).begin()

    def _failure_view(
        self, person: str, position: BrowserPosition, draft: str, error: TalkbackError
    ) -> ChatView:
        """Return the page with the reason why nothing was sent, and the text in the composer."""
        view = self._view_at(person, position)
        view["banner"] = _error_banner(error)
        return {**view, "draft": draft} if draft else view


def _error_banner(error: TalkbackError) -> Markup:
    """Return what went wrong, for people who know nothing of queues and tokens."""
    match error:
        case EngineBusyError(retry_after=seconds):
            wait = "a moment" if seconds < 5 else f"{seconds:.0f} seconds"
            return banner(f"Many people are asking just now. Try again in {wait}.", "warn")
        case PromptTooLongError():
            return banner("This is too long to answer. Shorten it and send it again.", "warn")
    return banner(str(error), "error")
