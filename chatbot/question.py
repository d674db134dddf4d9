"""Answers a question: position, approved answers, prompt, engine. Page, API and plugins call it.

turn = ask(service, Question("When do you open?", person="ann")).begin()
for delta in turn:
    print(delta, end="")
print(turn.message_id, turn.speaker.adapter)
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chatbot.conversation import QuestionPosition, find_position, store_question
from chatbot.engine.default_sampling import thinking_budget
from chatbot.engine.protocol import Sampling
from chatbot.engine.stream import Stream
from chatbot.exemplar_form.forms import DEFAULT_FORM, select_shown
from chatbot.prompt import fit_prompt
from chatbot.service import Service
from chatbot.turn import Turn
from feedback import exemplars
from feedback.exemplars import ApprovedAnswer
from feedback.messages import Message, Role, Speaker

RETRY_TEMPERATURE, RETRY_TOP_P = 0.8, 0.95
"""At least this temperature, and at most this top_p, when an answer is asked for again: a greedy
one would come out the same."""


@dataclass(frozen=True)
class Question:
    """Holds what ``person`` asks, where in which conversation, and how it is to be answered."""

    text: str
    """Unused when ``retry_of`` is given."""
    person: str
    conversation_id: str | None = None
    """None starts a conversation, or takes that of ``parent_id``."""
    parent_id: str | None = None
    """The message that the question follows; None: it stands at the start."""
    retry_of: str | None = None
    """The id of an earlier answer: its question is answered again, as a sibling."""
    unstored_history: Sequence[tuple[Role, str]] = ()
    """Turns (role, text) after ``parent_id`` that are not stored yet; begin stores them."""
    adapter: str | None = None
    """None is the one in service."""
    sampling: Sampling | None = None
    """None is that of the settings."""
    system_prompt: str | None = None
    """None is that of the settings."""
    model_only: bool = False
    """Leaves approved answers out, to see what the adapter itself has learnt."""
    num_answers: int = 1
    """How many answers are given at the same time."""


@dataclass(frozen=True)
class PendingTurn:
    """Holds a question that the engine answers already and that is yet to be stored.

    Call `begin` or `cancel`. Asking the engine and writing to the disk are two steps, so that
    neither has to wait for the other.
    """

    service: Service
    position: QuestionPosition
    person: str
    streams: list[tuple[Stream, Speaker]]

    def begin(self) -> Turn:
        """Store the question and return the first answer's turn; the others are its alternatives.

        Cancels the answers when the question cannot be stored.
        """
        service = self.service
        try:
            position = store_question(service.store, self.position, self.person)
        except BaseException:
            self.cancel()
            raise
        turns = [
            Turn(service.store, service.metrics, position, stream, speaker)
            for stream, speaker in self.streams
        ]
        service.open_turns.update((turn.message_id, turn) for turn in turns)
        turns[0].alternatives = turns[1:]
        return turns[0]

    def cancel(self) -> None:
        """Cancel all answers; nothing is stored."""
        for stream, _ in self.streams:
            stream.cancel()


def ask(service: Service, question: Question) -> PendingTurn:
    """Have a question answered, by the approved answer if there is one, else by the model.

    Nothing is stored when this or `PendingTurn.begin` raises: ForbiddenError, NotFoundError,
    BadMessageError, EmptyQuestionError, EngineBusyError, UnknownAdapterError, AdapterError,
    PromptTooLongError, ChatTemplateError.
    """
    if question.sampling is not None:
        thinking = thinking_budget(service.base, question.sampling.thinking)
        question = replace(question, sampling=replace(question.sampling, thinking=thinking))
    service.rollout.check_adapter(question.adapter)
    position = _position(service, question)
    chat = service.chat_settings
    speaker = Speaker(
        question.adapter or service.speaking,
        service.base.name,
        service.base.revision,
        chat.system_prompt if question.system_prompt is None else question.system_prompt,
        house=_has_house_settings(service, question),
    )
    sampling = question.sampling or _default_sampling(service, question.retry_of is not None)
    samplings = _with_distinct_seeds(sampling, question.num_answers)
    streams = _start_streams(service, question, position, speaker, samplings)
    return PendingTurn(service, position, question.person, streams)


def _position(service: Service, question: Question) -> QuestionPosition:
    position = find_position(
        service.store,
        question.conversation_id,
        question.person,
        question.parent_id,
        question.text,
        question.retry_of,
    )
    history = [Message("", "", None, role, text, "") for role, text in question.unstored_history]
    return replace(position, unstored_history=history)


def _start_streams(
    service: Service,
    question: Question,
    position: QuestionPosition,
    speaker: Speaker,
    samplings: Sequence[Sampling],
) -> list[tuple[Stream, Speaker]]:
    """Return a stream for each sampling, with its speaker as far as that is known yet."""
    approved = None if question.model_only else _approved(service, position, speaker)
    if approved is not None:
        speaker = replace(speaker, source="approved", exemplars=[approved.id])
        return [
            (_finished_stream(approved.answer), _recorded(speaker, sampling))
            for sampling in samplings
        ]
    examples = [] if question.model_only else _examples(service, position, speaker)
    form = service.form_finder.find() if examples else DEFAULT_FORM
    examples = select_shown(form, examples)
    wanted = samplings[0].max_tokens + samplings[0].thinking
    ids, shown = fit_prompt(
        service.base.tokenizer,
        speaker.system_prompt,
        position.full_history,
        position.question,
        [(example.question, example.answer) for example in examples],
        service.context_length - min(wanted, service.context_length // 2),
        form=form,
        thinking=samplings[0].thinking > 0,
    )
    adapter, streams = _submit(service, ids, question.adapter, samplings)
    shown_ids = [example.id for example in examples] if shown else []
    speaker = replace(speaker, adapter=adapter, exemplars=shown_ids)
    return [
        (stream, _recorded(speaker, sampling))
        for stream, sampling in zip(streams, samplings, strict=True)
    ]


def _submit(
    service: Service, ids: list[int], adapter: str | None, samplings: Sequence[Sampling]
) -> tuple[str, list[Stream]]:
    """Submit the prompt once for each sampling, to one adapter; all are taken, or none."""
    streams: list[Stream] = []
    try:
        for sampling in samplings:
            adapter, stream = service.rollout.submit(ids, adapter, sampling)
            streams.append(stream)
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return str(adapter), streams


def _approved(
    service: Service, position: QuestionPosition, speaker: Speaker
) -> ApprovedAnswer | None:
    """Return the answer that a reviewer approved for this question, or for one as similar as the
    settings ask for, unless that is the answer which somebody did not like and asks to have
    again."""
    if not service.chat_settings.approved_answers:
        return None
    retried = service.store.speaker(position.retry_of) if position.retry_of else None
    if retried is not None and retried.source == "approved":
        return None
    earlier = _earlier_questions(position)
    same = exemplars.find_approved(
        service.store, position.question, earlier=earlier, adapter=speaker.adapter
    )
    least = service.chat_settings.approved_similarity
    if same is not None or least is None:
        return same
    similar = exemplars.find_similar(
        service.store,
        position.question,
        earlier=earlier,
        adapter=speaker.adapter,
        embedder=service.embedder,
    )
    return similar.approved if similar is not None and similar.similarity >= least else None


def _examples(
    service: Service, position: QuestionPosition, speaker: Speaker
) -> list[ApprovedAnswer]:
    """Return approved answers to similar questions, for the prompt."""
    limit = service.chat_settings.exemplars
    if not limit:
        return []
    return exemplars.find_exemplars(
        service.store,
        position.question,
        limit,
        earlier=_earlier_questions(position),
        adapter=speaker.adapter,
        embedder=service.embedder,
    )


def _earlier_questions(position: QuestionPosition) -> list[str]:
    return [message.content for message in position.full_history if message.role == "user"]


def _finished_stream(answer: str) -> Stream:
    """Return a stream that holds the whole answer and has ended: nothing is generated."""
    stream = Stream(0)
    stream.first_token_ms = 0.0
    stream.append_text(answer)
    stream.end("stop")
    return stream


def _default_sampling(service: Service, retry: bool) -> Sampling:
    usual = service.default_sampling
    if not retry:
        return usual
    temperature = max(usual.temperature, RETRY_TEMPERATURE)
    return replace(usual, temperature=temperature, top_p=min(usual.top_p, RETRY_TOP_P))


def _has_house_settings(service: Service, question: Question) -> bool:
    """Tell whether an answer will be what the bot says by itself: neither its settings nor the
    answers before it are of the client's making."""
    chat = service.chat_settings
    sampling = question.sampling and replace(question.sampling, logprobs=None)
    return (
        question.system_prompt in (None, chat.system_prompt)
        and question.adapter in (None, service.speaking)
        and sampling in (None, *(_default_sampling(service, retry) for retry in (False, True)))
        and all(role == "user" for role, _ in question.unstored_history)
    )


def _with_distinct_seeds(sampling: Sampling, num_answers: int) -> list[Sampling]:
    """Return a sampling for each answer; the seeds differ, so that each answer can be repeated
    from the sampling that its speaker records."""
    if sampling.temperature == 0:
        return [sampling] * num_answers
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
    return [replace(sampling, seed=seed + number) for number in range(num_answers)]


def _recorded(speaker: Speaker, sampling: Sampling) -> Speaker:
    """Return the speaker with its sampling as it is read back from the database: as JSON."""
    return replace(speaker, sampling=json.loads(json.dumps(vars(sampling))))
