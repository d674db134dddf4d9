"""Tests that new sequences begin with what ended ones have computed, and answer the same."""

from random import Random

import pytest
import torch

from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.prefix_cache import Prefix, PrefixCache
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.stream import Stream
from tests.fixtures.reference_model import QUESTIONS, Oracle, start_engine
from tests.fixtures.waiting import wait_for_text, wait_until


def talk(engine: LocalEngine, oracle: Oracle, voice: str, turns: int) -> list[list[int]]:
    """Hold a conversation whose prompts hold all turns before; return the answers' tokens."""
    prompt, answers = oracle.prompt(QUESTIONS[0]), []
    for turn in range(turns):
        stream = engine.submit(Request(prompt, voice, Sampling(max_tokens=9)))
        wait_for_text(stream)
        answers.append(stream.ids)
        prompt = [*prompt, *stream.ids, *oracle.prompt(QUESTIONS[turn % 3 + 1])]
    return answers


def test_a_later_turn_reads_only_what_is_new_and_says_the_same(any_oracle: Oracle) -> None:
    counts, answers = [], []
    for megabytes in (0, 64):
        engine = start_engine(any_oracle, prefix_mb=megabytes)
        answers.append([talk(engine, any_oracle, voice, 4) for voice in any_oracle.voices])
        counts.append(engine.stats())
        engine.close()
    without, cached = counts
    assert answers[0] == answers[1]
    assert without["recalls"] == without["recalled"] == without["memory"]["prefixes"] == 0
    # Only within one voice: three of its four turns continue an earlier one.
    assert cached["recalls"] == 3 * len(any_oracle.voices)
    assert cached["prompt"] + cached["recalled"] == without["prompt"]
    assert cached["prompt"] < without["prompt"] / 2
    assert 0 < cached["memory"]["prefixes"] <= 64_000_000


def test_the_same_prompt_again_reads_its_last_token_only(
    oracle: Oracle, engine: LocalEngine
) -> None:
    for _ in range(2):
        before = engine.stats()["prompt"]
        stream = engine.submit(oracle.request(QUESTIONS[1], BASE))
        wait_for_text(stream)
        assert stream.ids == oracle.answer(QUESTIONS[1], BASE)
    assert engine.stats()["prompt"] == before + 1


def test_what_an_unloaded_adapter_has_read_leaves_with_it(oracle: Oracle) -> None:
    engine = start_engine(oracle)
    name = next(iter(oracle.adapters))
    wait_for_text(engine.submit(oracle.request(QUESTIONS[1], name)))
    wait_for_text(engine.submit(oracle.request(QUESTIONS[2], name)))
    assert engine.stats()["memory"]["prefixes"] > 0
    engine.unload(name)
    wait_until(lambda: name not in engine.stats()["adapters"])
    wait_for_text(engine.submit(oracle.request(QUESTIONS[2], BASE)))
    assert engine.stats()["memory"]["prefixes"] == 0
    engine.close()


def test_the_prefix_that_was_of_no_use_for_longest_makes_room() -> None:
    prefixes = PrefixCache(max_bytes=3 * 40)

    def keep(adapter: str, ids: list[int], size: int = 5) -> None:
        prefixes.insert(Prefix(adapter, torch.tensor(ids), [torch.zeros(1, 2, size)]))

    def known(*ids: int) -> int:
        return prefixes.match_prefix("a", torch.tensor(ids))[0]

    for first in (1, 2, 3):
        keep("a", [first, 0])
    assert known(1, 0, 7) == 2
    keep("b", [1, 0])
    assert prefixes.nbytes == prefixes.max_bytes
    assert [known(n, 0) for n in (1, 2, 3)] == [2, 0, 2]
    keep("a", [1, 0, 4])
    assert prefixes.nbytes == prefixes.max_bytes, "an entry that contains another takes its place"
    keep("a", [9], 500)
    assert known(9) == 0, "one entry above the limit is not kept"


# -- A row that its last stream has left


def test_who_goes_on_alone_is_found_in_place_and_nothing_is_copied(
    oracle: Oracle, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []
    for name in ("copy_row", "restore_row"):
        monkeypatch.setattr(SlotKVCache, name, lambda *_, name=name: copies.append(name))
    talk(engine, oracle, oracle.voices[1], 4)
    assert engine.stats()["recalls"] == 3
    assert copies == []


def test_after_a_pause_nobody_waits_for_a_copy(oracle: Oracle, engine: LocalEngine) -> None:
    asked = [oracle.request(question, BASE) for question in QUESTIONS[:2]]
    first = engine.submit(asked[0])
    wait_for_text(first)
    prefixes = engine.scheduler.prefixes
    wait_until(lambda: not prefixes.has_deferred_copy and engine.stats()["memory"]["prefixes"] > 0)
    kept = engine.stats()["memory"]["prefixes"]
    wait_for_text(engine.submit(Request([*asked[0].prompt_ids, *first.ids, 9], BASE)))
    assert engine.stats()["recalled"] == len(asked[0].prompt_ids) + len(first.ids) - 1
    wait_for_text(engine.submit(asked[1]))
    assert engine.stats()["memory"]["prefixes"] > kept


def test_what_a_row_holds_is_kept_when_another_comes_there(
    oracle: Oracle, engine: LocalEngine
) -> None:
    first = engine.submit(oracle.request(QUESTIONS[1], BASE))
    wait_for_text(first)
    wait_for_text(engine.submit(oracle.request(QUESTIONS[2], BASE)))
    before = engine.stats()["prompt"]
    more = [*oracle.prompt(QUESTIONS[1]), *first.ids, 9]
    wait_for_text(engine.submit(Request(more, BASE, Sampling(max_tokens=3))))
    assert engine.stats()["prompt"] == before + 2, "its last token and the new one"


@pytest.mark.parametrize("tokens", [(5, 25), (25, 5)])
def test_of_two_that_end_both_are_remembered(
    oracle: Oracle, engine: LocalEngine, tokens: tuple[int, int]
) -> None:
    asked = [oracle.request(QUESTIONS[n], BASE, most) for n, most in enumerate(tokens)]
    streams = [engine.submit(request) for request in asked]
    for stream in streams:
        wait_for_text(stream)
    before = engine.stats()["prompt"]
    for request, stream in zip(asked, streams, strict=True):
        more = [*request.prompt_ids, *stream.ids, 9]
        wait_for_text(engine.submit(Request(more, BASE, Sampling(max_tokens=3))))
    assert engine.stats()["prompt"] == before + 4, "of each its last token and the new one"


def test_who_is_cancelled_in_a_prompt_leaves_nothing(oracle: Oracle) -> None:
    engine = start_engine(oracle, chunk=4, slots=2)
    asked = oracle.request(QUESTIONS[0], BASE)
    wait_for_text(engine.submit(asked))
    going_on = Request([*asked.prompt_ids[:-1], *oracle.prompt(QUESTIONS[1]) * 8])
    reading = engine.submit(going_on)
    wait_until(lambda: engine.stats()["recalls"] == 1)
    reading.cancel()
    assert reading.wait(5) and not reading.ids
    again = engine.submit(asked)
    wait_for_text(again)
    assert again.ids == oracle.answer(QUESTIONS[0], BASE)
    engine.close()


def converse(engine: LocalEngine, oracle: Oracle, chance: Random) -> dict[tuple[int, int], str]:
    """Hold six conversations of four turns, some at once and some requests cancelled; return the
    answer by (conversation, turn)."""
    voices = oracle.voices[:2]
    prompts = [oracle.prompt(QUESTIONS[number % 3]) for number in range(6)]
    turns, answers, running = [0] * 6, {}, dict[int, Stream]()
    while min(turns) < 4 or running:
        number = chance.randrange(6)
        if number in running:
            stream = running.pop(number)
            answers[number, turns[number]] = wait_for_text(stream)
            prompts[number] += [*stream.ids, *oracle.prompt(QUESTIONS[turns[number] % 3 + 3])]
            turns[number] += 1
        elif turns[number] < 4:
            tokens = 3 + (5 * number + 7 * turns[number]) % 11
            request = Request([*prompts[number]], voices[number % 2], Sampling(max_tokens=tokens))
            if chance.random() < 0.3:
                engine.submit(request).cancel()
            running[number] = engine.submit(request)
    return answers


@pytest.mark.parametrize("seed", range(6))
def test_conversations_in_any_order_say_what_they_say_without_a_memory(
    oracle: Oracle, seed: int
) -> None:
    answers = []
    for megabytes in (0, 64):
        engine = start_engine(oracle, slots=3, chunk=7, prefix_mb=megabytes)
        answers.append(converse(engine, oracle, Random(seed)))
        recalls = engine.stats()["recalls"]
        engine.close()
    assert answers[0] == answers[1]
    assert recalls >= 18, "all but the first turns"
