"""Carries out what people do on the chat page: each action yields the views that it leads to.

Nothing here knows Gradio's components: `layout.py` makes them, and `paint.py` turns these views
into changes of them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from chatbot.engine.protocol import EngineBusyError, PromptTooLongError
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat.ownership import owned_message
from chatbot.pages.chat.running import RunningAnswer, RunningAnswers
from chatbot.pages.chat.view import BrowserPosition, ChatView, ChatViews, OpenPages
from chatbot.pages.fragments import banner
from chatbot.pages.text import escape_markdown, unescape_markdown
from chatbot.question import Question, ask
from chatbot.turn import Turn
from feedback.errors import TalkbackError
from feedback.messages import Message

if TYPE_CHECKING:
    from chatbot.service import Service


class ChatActions:
    """Carries out the chat actions of all visitors of the page.

    Every action takes the browser's token, stored position and ids unchecked: a person reaches
    their own conversations alone, and anything else leads to an empty page. What was done on a
    page that has moved on since is not done (see `OpenPages`); an empty view changes nothing.
    """

    def __init__(
        self, service: "Service", identities: BrowserIdentities, running: RunningAnswers
    ) -> None:
        self._service = service
        self._store = service.store
        self._identities = identities
        self._running = running
        self._views = ChatViews(service.store, running)
        self.pages = OpenPages()
        self._answer_count = itertools.count(1)

    def load(self, token: object, stored_position: object, session: str) -> Iterator[ChatView]:
        """Open the page for a browser: who uses it, and the conversation it had open. Yields
        nothing when something was sent meanwhile, which the tab shows."""
        valid_token, person = self._identities.identify(token)
        position = self._views.position(person, stored_position)
        yield from self._open(valid_token, person, position, session, first=True)

    def open_conversation(
        self, token: object, conversation_id: str, session: str
    ) -> Iterator[ChatView]:
        """Open another conversation from the list."""
        newest = self._store.latest_message(conversation_id)
        picked = BrowserPosition(conversation_id, newest.id if newest else None)
        valid_token, person = self._identities.identify(token)
        position = self._views.position(person, picked.to_storage())
        yield from self._open(valid_token, person, position, session)

    def start_conversation(self, token: object, session: str) -> Iterator[ChatView]:
        """Open an empty conversation; it is stored with its first message."""
        valid_token, person = self._identities.identify(token)
        yield from self._open(valid_token, person, BrowserPosition(), session)

    def send(
        self, token: object, stored_position: object, text: str, session: str
    ) -> Iterator[ChatView]:
        """Send a message at the end of the thread and stream the answer."""
        valid_token, person = self._identities.identify(token)
        position = self._views.position(person, stored_position)
        if not text.strip() or self._running.find(position.leaf):
            yield {}
            return
        views = self._answer(person, position, position, text.strip(), session, from_composer=True)
        yield {"token": valid_token, **next(views)}
        yield from views

    def edit(
        self, token: object, stored_position: object, message_id: str, text: str, session: str
    ) -> Iterator[ChatView]:
        """Send the person's message with another text: a new branch from the turn before it."""
        valid_token, person = self._identities.identify(token)
        edited = owned_message(self._store, person, message_id)
        current = self._views.position(person, stored_position)
        text = unescape_markdown(text).strip()
        if edited is None or not text or text == edited.content:
            yield from self._open(valid_token, person, current, session)
            return
        position = BrowserPosition(edited.conversation_id, edited.parent_id)
        yield from self._answer(person, current, position, text, session)

    def retry(self, token: object, stored_position: object, session: str) -> Iterator[ChatView]:
        """Stream another answer to the last question, then ask which of the two is better."""
        valid_token, person = self._identities.identify(token)
        current = self._views.position(person, stored_position)
        answer = owned_message(self._store, person, current.leaf)
        question = owned_message(self._store, person, answer.parent_id) if answer else None
        if answer is None or question is None or answer.role != "assistant":
            yield from self._open(valid_token, person, current, session)
            return
        position = BrowserPosition(question.conversation_id, question.parent_id)
        yield from self._answer(person, current, position, "", session, retry_of=answer)

    def undo(self, token: object, stored_position: object, session: str) -> Iterator[ChatView]:
        """Step back before the last exchange, its question in the composer; both stay stored."""
        valid_token, person = self._identities.identify(token)
        current = self._views.position(person, stored_position)
        question = owned_message(self._store, person, current.leaf)
        if question is not None and question.role == "assistant":
            question = owned_message(self._store, person, question.parent_id)
        if question is None:
            yield from self._open(valid_token, person, current, session)
            return
        self._stop_at(current)
        position = BrowserPosition(question.conversation_id, question.parent_id)
        for view in self._open(valid_token, person, position, session):
            yield {**view, "draft": question.content}

    def show_version(
        self, token: object, stored_position: object, step: int, draft: str, session: str
    ) -> Iterator[ChatView]:
        """Show the version before (-1) or after (1) the one on the page; a question that it holds
        leaves the composer, where an undo has put it."""
        valid_token, person = self._identities.identify(token)
        current = self._views.position(person, stored_position)
        position = replace(current, leaf=self._views.versions(current).at(step))
        views = self._open(valid_token, person, position, session)
        view = next(views)
        held = escape_markdown(draft) in [bubble["text"] for bubble in view["bubbles"]]
        yield {**view, "draft": ""} if held else view
        yield from views

    def stop_generation(self, token: object, stored_position: object) -> None:
        """Cancel the answer that is under way on the page; the text so far is stored."""
        _, person = self._identities.identify(token)
        self._stop_at(self._views.position(person, stored_position))

    def _stop_at(self, position: BrowserPosition) -> None:
        """Cancel the answer to the last question, be it a second one to compare."""
        leaf = self._store.message(position.leaf) if position.leaf else None
        for question_id in (position.leaf, leaf.parent_id if leaf else None):
            running = self._running.find(question_id)
            if running is not None:
                running.turn.cancel()

    def _open(
        self,
        token: str,
        person: str,
        position: BrowserPosition,
        session: str,
        *,
        first: bool = False,
    ) -> Iterator[ChatView]:
        """Show a conversation, and follow its answer if one is under way; nothing, if it was to
        be the `first` that the tab shows and something else is."""
        running = self._running.find(position.leaf)
        if running is None:  # its end may have come since the position was read
            position = self._views.answered(position)
        move = self.pages.open if first else self.pages.move
        moved = move(session, position)
        if moved is None:
            return
        yield {"token": token, **self._views.whole(person, moved)}
        if running is not None:
            yield from self._follow(person, running, moved, session, None)

    def _answer(
        self,
        person: str,
        current: BrowserPosition,
        position: BrowserPosition,
        text: str,
        session: str,
        *,
        retry_of: Message | None = None,
        from_composer: bool = False,
    ) -> Iterator[ChatView]:
        """Answer `text`, asked at `position` by a page that shows `current`."""
        after = position.leaf if self.pages.is_open(session) else None
        moved = self.pages.move_from(session, current)
        if moved is None:  # it has not heard of it yet, or a connection was lost: show it again
            shown = self._views.position(person, self.pages.shown(session).to_storage())
            yield self._views.whole(person, shown)
            return
        self._stop_at(current)
        try:
            running = self._ask(person, position, text, retry_of)
        except TalkbackError as error:
            draft: ChatView = {"draft": text} if text else {}
            yield {**self._views.whole(person, moved), **draft, "banner": _error_banner(error)}
            return
        turn = running.turn
        asked = BrowserPosition(turn.conversation_id, turn.user_message_id, moved.number)
        self.pages.advance(session, asked)
        view = self._views.tail(person, asked, after)
        if after is None:
            view["titles"] = self._views.titles(person)
        if from_composer:
            view["draft"] = ""
        yield view
        yield from self._follow(person, running, asked, session, after)
        current_still = self.pages.is_current(session, moved.number)
        if current_still and retry_of is None and self._is_choice_due(turn):
            yield from self._offer_second_answer(person, turn, moved.number)

    def _follow(
        self,
        person: str,
        running: RunningAnswer,
        position: BrowserPosition,
        session: str,
        after: str | None,
    ) -> Iterator[ChatView]:
        """Show the growing answer, then the thread as it is stored, below message `after`; until
        the tab shows another page. The answer goes on all the same."""
        number = position.number
        shown = ("", "")
        for thought, text in running.texts():
            if not self.pages.is_current(session, number):
                return
            more: ChatView = {"thought": thought, "text": text}
            yield {"number": number, **(more if (thought, text) != shown else {})}
            shown = (thought, text)
        running.stored.result()
        answered = replace(position, leaf=running.turn.message_id)
        self.pages.advance(session, answered)
        view = self._views.tail(person, answered, after)
        if running.retry_of is not None:
            view["pair"] = self._distinct_pair(running.retry_of, running.turn.message_id)
        yield view

    def _is_choice_due(self, turn: Turn) -> bool:
        """Tell whether this is every n-th complete answer of the model (`choice_every`)."""
        every = self._service.chat_settings.choice_every
        complete = turn.speaker.source == "model" and turn.speaker.finish == "stop"
        return bool(every) and complete and next(self._answer_count) % every == 0

    def _offer_second_answer(self, person: str, turn: Turn, number: int) -> Iterator[ChatView]:
        """Generate another answer to the same question out of sight, then offer both."""
        question = self._store.message(turn.user_message_id)
        first = self._store.message(turn.message_id)
        waiting = banner("A second answer is on its way, to compare.")
        yield {"number": number, "busy": True, "banner": waiting}
        try:
            position = BrowserPosition(question.conversation_id, question.parent_id)
            second = self._ask(person, position, question.content, first)
        except TalkbackError:
            # The first answer stands, so nothing is amiss.
            yield {"number": number, "busy": False, "banner": ""}
            return
        for _ in second.texts():
            yield {"number": number}
        second.stored.result()
        pair = self._distinct_pair(first.id, second.turn.message_id)
        yield {"number": number, "busy": False, "banner": "", "pair": pair}

    def _distinct_pair(self, first: str, second: str) -> tuple[str, str] | None:
        """Return the two answers' ids, None when one is empty or they are the same."""
        texts = {self._store.message(answer).content.strip() for answer in (first, second)}
        return (first, second) if len(texts - {""}) == 2 else None

    def _ask(
        self, person: str, position: BrowserPosition, text: str, retry_of: Message | None
    ) -> RunningAnswer:
        question = Question(
            text,
            person=person,
            conversation_id=position.conversation,
            parent_id=position.leaf,
            retry_of=retry_of.id if retry_of else None,
        )
        turn = ask(self._service, question).begin()
        return self._running.start(turn, question.retry_of)


def _error_banner(error: TalkbackError) -> Markup:
    """Return what went wrong, for people who know nothing of queues and tokens."""
    match error:
        case EngineBusyError(retry_after=seconds):
            wait = "a moment" if seconds < 5 else f"{seconds:.0f} seconds"
            return banner(f"Many people are asking just now. Try again in {wait}.", "warn")
        case PromptTooLongError():
            return banner("This is too long to answer. Shorten it and send it again.", "warn")
    return banner(str(error), "error")
