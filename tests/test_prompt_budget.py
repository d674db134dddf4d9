"""How many prompt tokens a step computes beside running streams: so many that gaps double."""

from itertools import pairwise

import pytest

from chatbot.engine.local.timing.prompt_budget import (
    FIRST_TOKENS,
    GROWTH,
    LEAST_TOKENS,
    STEPS_BETWEEN,
    PromptBudget,
)


class Machine:
    """Takes steps whose costs are known: a part for all tokens, and one for each."""

    def __init__(self, fixed: float, per_token: float, most: int = 256) -> None:
        self.fixed, self.per_token, self.now, self.factor = fixed, per_token, 0.0, 1.0
        self.budget = PromptBudget(most, lambda: self.now)
        self.took: list[float] = []
        """Seconds of the steps that had prompt tokens."""

    def step(self, decoding: int, waiting: int = 0) -> int:
        """Take a step; return how many of the waiting prompt tokens it had."""
        prompt = min(waiting, self.budget.tokens(decoding))
        seconds = self.factor * (self.fixed + self.per_token * (decoding + prompt))
        with self.budget.step(decoding, prompt):
            self.now += seconds
        if prompt:
            self.took.append(seconds)
        return prompt

    def read(self, tokens: int, decoding: int) -> float:
        """Read a prompt beside so many streams; return the seconds."""
        began = self.now
        while tokens:
            tokens -= self.step(decoding, tokens)
        return self.now - began


@pytest.mark.parametrize("fixed, per_token", [(0.02, 0.001), (0.005, 0.003), (0.015, 0.0002)])
@pytest.mark.parametrize("decoding", [1, 8, 30])
def test_steps_take_at_most_twice_as_long_while_a_prompt_is_read(
    fixed: float, per_token: float, decoding: int
) -> None:
    machine = Machine(fixed, per_token)
    for _ in range(5):
        machine.step(decoding)
    alone = fixed + per_token * decoding
    seconds = machine.read(1500, decoding)
    assert sorted(machine.took)[len(machine.took) * 95 // 100] <= max(
        2.01 * alone, alone + LEAST_TOKENS * per_token
    )
    if per_token * 4 * LEAST_TOKENS < alone:
        assert 1500 * per_token / seconds > 0.42


def test_alone_a_prompt_is_read_in_chunks_as_set_and_small_ones_are_kept_beside_streams() -> None:
    assert Machine(0.02, 0.001).step(0, 1000) == 256
    machine = Machine(0.02, 0.001, most=3)
    assert machine.step(0, 1000) == 3 and machine.step(8) == 0
    assert [machine.step(8, 1000) for _ in range(9)] == [3] * 9


def test_before_anything_is_timed_a_step_has_few_and_one_cheap_step_does_not_bring_many() -> None:
    machine = Machine(0.02, 0.001)
    assert machine.step(8, 1000) == FIRST_TOKENS
    machine.step(8)
    machine.per_token = 0.0
    counts = [machine.step(8, 1000) for _ in range(4)]
    assert all(more <= GROWTH * one for one, more in pairwise(counts))


def test_where_everything_has_become_slower_prompts_do_not_starve() -> None:
    machine = Machine(0.02, 0.001)
    for _ in range(5):
        machine.step(8)
    machine.read(500, 8)
    machine.factor = 4.0  # another process computes beside
    for _ in range(8 * STEPS_BETWEEN):
        machine.step(8, 1000)
    assert machine.read(500, 8) < 4.0 * 500 * 0.001 * 3
