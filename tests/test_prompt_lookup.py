"""Tests that drafts from the prompt give the same text in fewer steps, however it is sampled."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from chatbot.engine.local.kernels.library import kernel_library
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.prompt_lookup import MAX_SPECULATING, PromptLookup
from chatbot.engine.local.sequence import Sequence
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.model.base import STARTER, end_token_ids, load_base
from chatbot.prompt import fit_prompt
from tests.fixtures.reference_model import QUESTIONS, Oracle, start_engine
from tests.fixtures.shop_corrections import load_facts

KINDS = [
    "torch",
    pytest.param(
        "int8", marks=pytest.mark.skipif(kernel_library() is None, reason="NO INT8: no kernels")
    ),
]


def propose(token_ids: Iterable[int], max_tokens: int = 8) -> list[int]:
    lookup = PromptLookup()
    lookup.extend(token_ids)
    return list(lookup.propose(max_tokens))


def test_what_came_after_the_last_two_tokens_comes_again() -> None:
    assert propose([1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5, 1, 2]
    assert propose([1, 2, 3, 4, 5, 1, 2], 2) == [3, 4]


def test_of_several_the_last_one_counts() -> None:
    assert propose([1, 2, 3, 1, 2, 4, 1, 2], 1) == [4]


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2], [1, 2, 3, 2], [2, 1, 3, 1, 2]])
def test_of_what_is_new_nothing_is_guessed(token_ids: list[int]) -> None:
    assert propose(token_ids) == []


@pytest.mark.parametrize("most", [0, -1])
def test_without_room_nothing_is_guessed(most: int) -> None:
    assert propose([1, 2, 3, 1, 2], most) == []


def test_after_a_guess_the_next_has_twice_as_many_tokens_as_were_right() -> None:
    lookup = PromptLookup()
    lookup.extend([*range(20), 0, 1])
    lengths = [len(lookup.propose(8))]
    for right in (8, 3, 0, 1, 2, 4):
        lookup.record_accepted(right)
        lengths.append(len(lookup.propose(8)))
    assert lengths == [8, 8, 6, 1, 2, 4, 8]


def answers(oracle: Oracle, requests: list[Request], **settings: int) -> list[Stream]:
    """Return the answers of a new engine, asked up to `MAX_SPECULATING` requests at a time."""
    engine = start_engine(oracle, **settings)
    streams: list[Stream] = []
    for first in range(0, len(requests), MAX_SPECULATING):
        now = [engine.submit(request) for request in requests[first : first + MAX_SPECULATING]]
        assert all(stream.wait(60) for stream in now)
        streams += now
    counts = engine.stats()
    engine.close()
    assert counts["decoded"] == sum(len(stream.ids) for stream in streams)
    assert (counts["guessed"] > 0) == ("prompt_lookup" not in settings)
    return streams


def script_drafts(
    monkeypatch: pytest.MonkeyPatch, answers: Iterable[tuple[Request, Stream]]
) -> None:
    """Have these answers drafted, most of the time with a wrong token somewhere."""
    known = {(*r.prompt_ids, r.adapter): stream.ids for r, stream in answers}
    generator = random.Random(5)

    def propose_draft(sequence: Sequence, max_draft: int) -> list[int]:
        start, request = len(sequence.stream.ids), sequence.request
        rest = known[*request.prompt_ids, request.adapter][start:]
        draft = rest[: max(min(max_draft, sequence.tokens_left - 1), 0)]
        if draft and generator.random() < 0.7:
            draft[generator.randrange(len(draft))] = 9
        return draft

    monkeypatch.setattr(Sequence, "propose_draft", propose_draft)


SAMPLINGS = {
    "greedy": Sampling(),
    "temperature": Sampling(temperature=1, seed=7),
    "nucleus": Sampling(temperature=1, top_p=0.9, seed=8, repetition_penalty=1.1),
    "penalties": Sampling(frequency_penalty=0.5, presence_penalty=0.1),
    "stop": Sampling(stop=("e", "ou"), temperature=0.8, seed=3),
    "logprobs": Sampling(logprobs=2),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_text_is_the_same_as_without_guesses(
    any_oracle: Oracle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sampling = replace(SAMPLINGS[name], max_tokens=40)
    requests = [
        Request(any_oracle.prompt(question), voice, sampling)
        for question in QUESTIONS
        for voice in any_oracle.voices
    ]
    without = answers(any_oracle, requests, prompt_lookup=0)
    script_drafts(monkeypatch, list(zip(requests, without, strict=True)))
    for one, other in zip(answers(any_oracle, requests), without, strict=True):
        assert (one.ids, one.text, one.finish) == (other.ids, other.text, other.finish)
        assert [logprob.token for logprob in one.logprobs] == (
            one.ids if name == "logprobs" else []
        )
        for with_draft, without_draft in zip(one.logprobs, other.logprobs, strict=True):
            assert with_draft.logprob == pytest.approx(without_draft.logprob, abs=1e-3)


def test_what_a_guess_got_wrong_is_not_remembered(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the next turn continues the sampled tokens, not the drafted ones."""
    monkeypatch.setattr(Sequence, "propose_draft", lambda *_: [9, 9, 9])
    asked = Request(oracle.prompt(QUESTIONS[0]), oracle.voices[1], Sampling(max_tokens=13))
    engine = start_engine(oracle)
    first = engine.submit(asked)
    assert first.wait(60)
    more = [*asked.prompt_ids, *first.ids, *oracle.prompt(QUESTIONS[1])]
    second = engine.submit(replace(asked, prompt_ids=more))
    assert second.wait(60) and engine.stats()["recalls"] == 1
    engine.close()
    (fresh,) = answers(oracle, [replace(asked, prompt_ids=more)], prompt_lookup=0)
    assert second.ids == fresh.ids


def test_no_guess_goes_beyond_the_room_there_is(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts: list[tuple[int, int]] = []
    propose_draft = Sequence.propose_draft

    def watched(sequence: Sequence, max_draft: int) -> list[int]:
        draft = propose_draft(sequence, max_draft)
        drafts.append((len(sequence.stream.ids) + len(draft), len(draft)))
        return draft

    monkeypatch.setattr(Sequence, "propose_draft", watched)
    again = [5, 6, 7, 8]
    for tokens in range(2, 14):
        engine = start_engine(oracle, max_length=64)
        # Nothing but 5 and 6 can be sampled: they have occurred together before.
        bias = tuple((token, 100.0) for token in (5, 6))
        prompt = (again * 16)[: 64 - tokens]
        stream = engine.submit(Request(prompt, BASE, Sampling(max_tokens=99, logit_bias=bias)))
        assert stream.wait(60)
        engine.close()
        assert len(stream.ids) == tokens and stream.finish == "length"
        assert all(end < tokens for end, _ in drafts)
        assert tokens < 5 or any(length for _, length in drafts)
        drafts.clear()


def test_many_streams_leave_no_room_for_guesses(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(oracle, slots=MAX_SPECULATING + 1)
    together: list[int] = []
    monkeypatch.setattr(
        Sequence,
        "propose_draft",
        lambda *_: together.append(len(engine.scheduler.sequences)) or [9, 9],
    )
    bias = tuple((token, -100.0) for token in end_token_ids(oracle.base))
    for count in (MAX_SPECULATING, MAX_SPECULATING + 1):
        request = Request([5, 6, 7], BASE, Sampling(max_tokens=50, logit_bias=bias))
        streams = [engine.submit(request) for _ in range(count)]
        assert all(stream.wait(60) for stream in streams)
    engine.close()
    assert set(together) >= {MAX_SPECULATING} and max(together) <= MAX_SPECULATING


@pytest.mark.parametrize("kind", KINDS)
def test_an_approved_answer_is_repeated_in_a_third_of_the_steps(kind: str) -> None:
    found = []
    for most in (8, 0):
        base = load_base(STARTER)
        settings = EngineSettings(kind=kind, threads=1, prompt_lookup=most)
        engine = LocalEngine(base, settings)
        texts = []
        for fact in load_facts()[:10]:
            answer = fact.answer.replace(fact.fact, "half past ten")
            shown = [(fact.question, answer)]
            ids, _ = fit_prompt(
                base.tokenizer, "", [], fact.paraphrases[0], shown, 900, form="in question"
            )
            stream = engine.submit(Request(ids, BASE, Sampling(max_tokens=48)))
            assert stream.wait(60)
            texts.append(stream.text)
        found.append((texts, engine.stats()["steps"]))
        engine.close()
    (guessed, few), (without, many) = found
    assert guessed == without and few < many / 3
