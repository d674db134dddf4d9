"""Compares sampling with transformers' processors and with OpenAI's formula of penalties."""

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.sampler import Penalties, Sampler, argmax_tokens, token_logprob
from chatbot.engine.protocol import BASE, EngineError, Request, Sampling
from chatbot.engine.validation import check_sampling
from chatbot.model.base import end_token_ids, load_base
from tests.fixtures.reference_model import QUESTIONS, Oracle
from tests.fixtures.waiting import wait_for_text

LOGITS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def sampled(oracle: Oracle, engine: LocalEngine, seed: int, **values: float) -> list[int]:
    sampling = Sampling(max_tokens=20, seed=seed, **values)  # type: ignore[arg-type]
    stream = engine.submit(Request(oracle.prompt("Hello"), BASE, sampling))
    wait_for_text(stream)
    return stream.ids


def test_a_seed_gives_the_same_text_whatever_else_runs(oracle: Oracle, engine: LocalEngine) -> None:
    alone = sampled(oracle, engine, 7, temperature=1.0, top_p=0.9)
    crowd = [engine.submit(oracle.request(q, v, 60)) for q in QUESTIONS for v in oracle.voices]
    assert sampled(oracle, engine, 7, temperature=1.0, top_p=0.9) == alone
    assert sampled(oracle, engine, 8, temperature=1.0, top_p=0.9) != alone
    for stream in crowd:
        stream.cancel()


def test_top_k_one_and_tiny_top_p_are_greedy(oracle: Oracle, engine: LocalEngine) -> None:
    greedy = oracle.answer("Hello", BASE)[:20]
    assert sampled(oracle, engine, 1, temperature=1.0, top_k=1) == greedy
    assert sampled(oracle, engine, 1, temperature=1.0, top_p=1e-6) == greedy


def test_sampling_keeps_the_tokens_that_transformers_would_keep() -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(3))
    cuts = ((0, 0.5, 0), (0, 0.95, 0), (40, 1, 0), (40, 0.7, 0), (0, 1, 0.1), (40, 0.9, 0.3))
    for top_k, top_p, min_p in cuts:
        ids, scores = torch.zeros(1, 1, dtype=torch.long), logits[None].clone()
        scores = TemperatureLogitsWarper(0.8)(ids, scores)
        scores = TopKLogitsWarper(top_k)(ids, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(ids, scores) if top_p < 1 else scores
        scores = MinPLogitsWarper(min_p)(ids, scores) if min_p else scores
        sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
        kept, whose = Sampler(sampling, [])._truncate(logits / 0.8)
        left = kept.isfinite().nonzero()[:, 0]
        kept, whose = kept[left], left if whose is None else whose[left]
        theirs = set(scores[0].isfinite().nonzero()[:, 0].tolist())
        # The sums are rounded in another order: one token at the edge may differ.
        assert len(theirs ^ set(whose.tolist())) <= 1
        assert torch.allclose(kept.softmax(-1), scores.softmax(-1)[0, whose], atol=1e-4)


def test_the_repetition_penalty_is_that_of_transformers(
    oracle: Oracle, engine: LocalEngine
) -> None:
    ids = torch.tensor([oracle.prompt("Hello")])
    out = load_base(str(oracle.path)).model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=1.7,
        eos_token_id=sorted(end_token_ids(oracle.base)),
        pad_token_id=0,
    )
    assert sampled(oracle, engine, 0, repetition_penalty=1.7) == out[0, ids.shape[1] :].tolist()


# -- Bias and penalties


def after(sampling: Sampling, *tokens: int) -> list[float]:
    """Return the penalised logits after an answer of these tokens."""
    penalties = Penalties(sampling)
    for token in tokens:
        penalties.count_token(token)
    return penalties.apply(LOGITS).tolist()


def test_nothing_asked_changes_nothing() -> None:
    assert Penalties(Sampling()).is_empty and after(Sampling(), 1, 1) == LOGITS.tolist()


def test_frequency_counts_and_presence_does_not() -> None:
    assert after(Sampling(frequency_penalty=0.5), 3, 3, 1) == [1, 1.5, 3, 3]
    assert after(Sampling(presence_penalty=0.5), 3, 3, 1) == [1, 1.5, 3, 3.5]


def test_a_bias_is_added_and_unknown_tokens_have_none() -> None:
    assert after(Sampling(logit_bias=((0, 100.0), (3, -100.0), (4, 9.0)))) == [101, 2, 3, -96]


def test_they_decide_the_greedy_choice_too() -> None:
    sampler = Sampler(Sampling(frequency_penalty=1.5), [])
    assert not sampler.takes_argmax
    assert [sampler.sample(LOGITS) for _ in range(3)] == [3, 2, 3]
    assert Sampler(Sampling(logit_bias=((0, 9.0),)), []).sample(LOGITS) == 0


def test_a_chance_is_of_the_raw_logits() -> None:
    logprob = token_logprob(LOGITS, 1, 2)
    expected = LOGITS.log_softmax(-1).tolist()
    assert (logprob.token, logprob.logprob) == (1, pytest.approx(expected[1]))
    assert logprob.top == ((3, pytest.approx(expected[3])), (2, pytest.approx(expected[2])))
    never = token_logprob(torch.tensor([0.0, -torch.inf]), 1, 0)
    assert never.logprob == -9999.0 and never.top == ()


@pytest.mark.parametrize(
    "bad", [{"frequency_penalty": 2.5}, {"presence_penalty": -3.0}, {"logprobs": 21}]
)
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(EngineError, match=next(iter(bad))):
        check_sampling(Sampling(**bad))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_token_of_each_row_where_there_is_one(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[0, 700] = 9.0
    logits[1, 3], logits[2, 4], logits[3] = float("nan"), float("inf"), float("-inf")
    finite, ids = argmax_tokens(logits)
    assert finite == [True, False, False, False, True]
    assert [ids[0], ids[4]] == [700, int(logits[4].argmax())]
