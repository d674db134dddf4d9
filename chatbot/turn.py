"""One turn of talk: history, approved answers, engine, store. Page, API and plugins call it.

    turn = ask(service, None, "ann", None, "When do you open?").begin()
    for delta in turn:
        print(delta, end="")
    print(turn.message_id, turn.speaker.adapter)

What people saw is what is kept: an answer is stored when its stream ends, is cancelled, or loses
its listener, always with its speaker.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from chatbot import conversation as places
from chatbot.conversation import QuestionPosition
from chatbot.engine.protocol import Sampling
from chatbot.engine.stream import Stream, TokenLogprob
from chatbot.prompt import fit_prompt
from feedback import exemplars
from feedback.exemplars import ApprovedAnswer
from feedback.ids import new_id
from feedback.messages import Message, Role, Speaker
from feedback.settings import Settings

if TYPE_CHECKING:
    from chatbot.service import Service

RETRY_TEMPERATURE = 0.8
"""At least this when an answer is asked for again: a greedy one would come out the same."""


class ChatSettings(Settings):
    """``[chat]``: how the bot speaks, and what its page offers."""

    table: ClassVar[str] = "chat"

    title: str = "Talkback"
    """The bot's name on the page."""
    system_prompt: str = ""
    """Put before every conversation; empty: none."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the likeliest word."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Most tokens of one answer."""
    examples: list[str] = Field(default_factory=list)
    """Questions that an empty chat offers."""
    approved_answers: bool = True
    """Whether a question that has an approved answer gets it as it stands."""
    exemplars: Annotated[int, Field(ge=0, le=10)] = 3
    """At most so many approved answers to similar questions go into the prompt; 0: none."""
    choice_every: Annotated[int, Field(ge=0)] = 0
    """Every so many answers, two are offered to choose from; 0: never."""


class Turn:
    """An answer on its way. Iterate once, for text deltas; after that it is stored. Or ``follow``
    it, look at ``deltas`` now and then, and ``close`` it once it has ``ended``.

    ``conversation_id``, ``user_message_id`` (the question's) and ``message_id`` (the answer's)
    are there from the start. ``speaker`` and ``text`` are there after the end. ``cancel`` may
    come from any thread and any number of times, also after the end.
    """

    def __init__(
        self,
        service: "Service",
        place: QuestionPosition,
        stream: Stream,
        speaker: Speaker,
    ) -> None:
        self.conversation_id = str(place.conversation_id)
        self.user_message_id = place.question_id
        self.message_id = new_id("msg")
        self.alternatives: list[Turn] = []
        """More answers to the same question, where several were asked for; iterate each."""
        self._num_delivered: int | None = 0
        """How many deltas have been handed out; None: whatever comes counts as that."""
        self._store, self._metrics = service.store, service.metrics
        self._stream = stream
        self._speaker = speaker
        self._stored = False
        self._lock = threading.Lock()
        service.open_turns.add(self)

    @property
    def text(self) -> str:
        """What has been handed out so far; after the end, the answer as it is stored."""
        return "".join(self._stream.deltas[: self._num_delivered])

    @property
    def deltas(self) -> Sequence[str]:
        """All that has come so far, handed out or not; it only grows, until the answer ended."""
        return self._stream.deltas

    @property
    def ended(self) -> bool:
        """Whether all has come. It is stored by whoever iterates, or by `close`."""
        return self._stream.finish is not None

    @property
    def adapter(self) -> str:
        """Who speaks."""
        return self._speaker.adapter

    @property
    def error(self) -> str | None:
        """Why the answer broke off, when it did."""
        return self._stream.error

    @property
    def speaker(self) -> Speaker:
        """Who spoke, how, and how it ended. Before the end its numbers are not final."""
        return self._speaker

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """How likely each token was; None if that was not asked or nothing was generated."""
        asked = self._speaker.sampling.get("logprobs") is not None
        return self._stream.logprobs if asked and self._speaker.source == "model" else None

    @property
    def reach(self) -> list[int]:
        """Up to which token each delta goes; tokens after the last one are no part of the text."""
        return self._stream.token_counts

    def __iter__(self) -> Iterator[str]:
        try:
            for number, delta in enumerate(self._stream, 1):
                self._num_delivered = number
                yield delta
        finally:
            self.close()

    def listen(self, heard: Callable[[], None]) -> None:
        """Have ``heard`` called when the answer begins and when it has ended (`Stream.on_update`).
        All that comes until then counts as handed out."""
        self._num_delivered = None
        self._stream.on_update(heard)

    def wait(self, seconds: float) -> bool:
        """Sleep until the answer has ended, at most so long; True if it has."""
        return self._stream.wait(seconds)

    def cancel(self) -> None:
        """Stop: the iteration ends soon after, and what was handed out is kept."""
        self._stream.cancel()

    def close(self) -> None:
        """End the answer if it has not ended, and store it; it is on the disk when this returns,
        or with the `write` around it."""
        with self._lock:
            if self._stored:
                return
            self._stream.cancel()
            self._stream.wait()
            self._speaker = self._final_speaker()
            self._store.add_message(
                self.conversation_id,
                self.user_message_id,
                "assistant",
                self.text,
                self._speaker,
                self.message_id,
            )
            self._stored = True
            self._store.on_rollback(self._mark_unstored)
            self._metrics.record_answer(self._speaker)

    def _mark_unstored(self) -> None:
        """It was stored with others and is not, after all."""
        self._stored = False

    def _final_speaker(self) -> Speaker:
        """The speaker with what the stream measured; cut short when not all was handed out."""
        stream = self._stream
        whole = self.text == stream.text
        return replace(
            self._speaker,
            prompt_tokens=stream.prompt_tokens,
            completion_tokens=stream.completion_tokens,
            first_token_ms=stream.first_token_ms,
            total_ms=stream.total_ms,
            finish=stream.finish or "error" if whole else "cancelled",
            message_id=self.message_id,
        )


def ask(
    service: "Service",
    conversation_id: str | None,
    person: str,
    parent_id: str | None,
    text: str,
    *,
    adapter: str | None = None,
    sampling: Sampling | None = None,
    system: str | None = None,
    retry_of: str | None = None,
    unaided: bool = False,
    given: Sequence[tuple[Role, str]] = (),
    answers: int = 1,
) -> "PendingTurn":
    """Have ``text`` answered, said by ``person`` under the message ``parent_id`` (None: at the
    start).

    ``conversation_id`` None starts a conversation. ``adapter`` None is the one in service.
    ``sampling`` and ``system`` None are the settings'. ``retry_of`` is the id of an earlier answer:
    its question is answered again, as a sibling, and ``text`` and ``parent_id`` go unused.
    ``unaided`` leaves approved answers out, to hear what the adapter itself has learnt. ``given``
    are turns (role, text) that were said elsewhere after ``parent_id``: they become history too.
    ``answers`` is how many are given at the same time; all but the first are in
    ``alternatives``.

    Nothing is stored when this or `PendingTurn.begin` raises: ForbiddenError, NotFoundError,
    BadMessageError, EmptyQuestionError, EngineBusyError, UnknownAdapterError, AdapterError,
    PromptTooLongError, ChatTemplateError.
    """
    service.check_adapter(adapter)
    place = places.find_position(service.store, conversation_id, person, parent_id, text, retry_of)
    place = replace(
        place, unstored_history=[Message("", "", None, role, said, "") for role, said in given]
    )
    chat = service.chat_settings
    sampling = sampling or (_retry_sampling(chat) if retry_of else _default_sampling(chat))
    speaker = Speaker(
        adapter or service.speaking,
        service.base.name,
        service.base.revision,
        chat.system_prompt if system is None else system,
    )
    streams = _ask(
        service, place, speaker, _with_distinct_seeds(sampling, answers), adapter, unaided
    )
    return PendingTurn(service, place, person, streams)


@dataclass(frozen=True)
class PendingTurn:
    """A question that the engine answers already, and that is yet to be stored: `begin` or
    `cancel` it. What asks the engine and what writes to the disk need not wait for each other."""

    service: "Service"
    place: QuestionPosition
    person: str
    streams: list[tuple[Stream, Speaker]]

    def begin(self) -> Turn:
        """The turn, its question on the disk; the first answer's, with the others in it."""
        try:
            place = places.store_question(self.service.store, self.place, self.person)
        except BaseException:
            self.cancel()
            raise
        turns = [Turn(self.service, place, stream, speaker) for stream, speaker in self.streams]
        turns[0].alternatives = turns[1:]
        return turns[0]

    def cancel(self) -> None:
        """Nobody wants an answer any more."""
        for stream, _ in self.streams:
            stream.cancel()


def _ask(
    service: "Service",
    place: QuestionPosition,
    speaker: Speaker,
    samplings: Sequence[Sampling],
    adapter: str | None,
    unaided: bool,
) -> list[tuple[Stream, Speaker]]:
    """A stream a sampling and, as far as known, its speaker: an approved answer, else the model."""
    given = None if unaided else _approved(service, place, speaker)
    if given is not None:
        speaker = replace(speaker, source="approved", exemplars=[given.id])
        return [(_finished_stream(given.answer), _recorded(speaker, each)) for each in samplings]
    examples = [] if unaided else _examples(service, place, speaker)
    ids, shown = fit_prompt(
        service.base.tokenizer,
        speaker.system_prompt,
        place.full_history,
        place.question,
        [(example.question, example.answer) for example in examples],
        service.context_length - min(samplings[0].max_tokens, service.context_length // 2),
    )
    speaker = replace(speaker, exemplars=[example.id for example in examples] if shown else [])
    chosen, streams = _submit(service, ids, adapter, samplings)
    speaker = replace(speaker, adapter=chosen)
    return [
        (stream, _recorded(speaker, each)) for stream, each in zip(streams, samplings, strict=True)
    ]


def _submit(
    service: "Service", ids: list[int], adapter: str | None, samplings: Sequence[Sampling]
) -> tuple[str, list[Stream]]:
    """All the streams, of one adapter, or none."""
    streams: list[Stream] = []
    try:
        for sampling in samplings:
            adapter, stream = service.submit(ids, adapter, sampling)
            streams.append(stream)
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return str(adapter), streams


def _approved(
    service: "Service", place: QuestionPosition, speaker: Speaker
) -> ApprovedAnswer | None:
    """The answer that a reviewer approved for this question, unless it is what was not liked."""
    if not service.chat_settings.approved_answers:
        return None
    before = service.store.speaker(place.retry_of) if place.retry_of else None
    if before is not None and before.source == "approved":
        return None
    return exemplars.find_approved(
        service.store, place.question, earlier=_earlier(place), adapter=speaker.adapter
    )


def _examples(
    service: "Service", place: QuestionPosition, speaker: Speaker
) -> list[ApprovedAnswer]:
    limit = service.chat_settings.exemplars
    if not limit:
        return []
    return exemplars.find_exemplars(
        service.store, place.question, limit, earlier=_earlier(place), adapter=speaker.adapter
    )


def _earlier(place: QuestionPosition) -> list[str]:
    """The person's turns before this one."""
    return [message.content for message in place.full_history if message.role == "user"]


def _finished_stream(answer: str) -> Stream:
    """A stream that has ended already: nothing had to be generated."""
    stream = Stream(0)
    stream.first_token_ms = 0.0
    stream.append_text(answer)
    stream.end("stop")
    return stream


def _default_sampling(chat: ChatSettings) -> Sampling:
    return Sampling(max_tokens=chat.max_tokens, temperature=chat.temperature)


def _retry_sampling(chat: ChatSettings) -> Sampling:
    warm = max(chat.temperature, RETRY_TEMPERATURE)
    return Sampling(max_tokens=chat.max_tokens, temperature=warm, top_p=0.95)


def _with_distinct_seeds(sampling: Sampling, answers: int) -> list[Sampling]:
    """One for each answer; chance that differs, and can be repeated from each speaker's row."""
    if sampling.temperature == 0:
        return [sampling] * answers
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
    return [replace(sampling, seed=seed + number) for number in range(answers)]


def _recorded(speaker: Speaker, sampling: Sampling) -> Speaker:
    """With the sampling as it will be read back."""
    return replace(speaker, sampling=json.loads(json.dumps(vars(sampling))))
