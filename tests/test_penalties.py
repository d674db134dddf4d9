"""What is added to and taken off the logits, against OpenAI's formula, and the best of them."""

import pytest
import torch

from chatbot.engine.local.penalties import Penalties
from chatbot.engine.local.sampler import Sampler, argmax_tokens, token_logprob
from chatbot.engine.protocol import EngineError, Sampling
from chatbot.engine.validation import check_sampling

LOGITS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def after(sampling: Sampling, *tokens: int) -> list[float]:
    """The logits once these tokens have come."""
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
    told = token_logprob(LOGITS, 1, 2)
    sure = LOGITS.log_softmax(-1).tolist()
    assert (told.token, told.logprob) == (1, pytest.approx(sure[1]))
    assert told.top == ((3, pytest.approx(sure[3])), (2, pytest.approx(sure[2])))
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
    sound, ids = argmax_tokens(logits)
    assert sound == [True, False, False, False, True]
    assert [ids[0], ids[4]] == [700, int(logits[4].argmax())]
