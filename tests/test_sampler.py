"""How the next token is chosen, against transformers."""

import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.sampler import Sampler
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.model.base import end_token_ids, load_base
from tests.fixtures.reference_model import QUESTIONS, Oracle
from tests.fixtures.waiting import wait_for_text


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
