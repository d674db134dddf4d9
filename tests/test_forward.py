"""Prompts read together: the same as one by one, and only where it saves time."""

from collections.abc import Iterator

import pytest
import torch

from chatbot.inprocess.forward import STEP, STRIDE, Forward
from chatbot.inprocess.path import Part
from tests.oracle import Oracle, start


@pytest.fixture
def path(any_oracle: Oracle) -> Iterator[Forward]:
    engine = start(any_oracle)
    found = engine._batch._path
    assert isinstance(found, Forward)
    with torch.inference_mode():
        yield found.apart(4, 64)
    engine.close()


def ids(count: int) -> list[int]:
    return list(range(20, 20 + count))


def test_prompts_of_all_adapters_read_together_are_as_read_apart(
    any_oracle: Oracle, path: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Part(1, ids(5), 0, any_oracle.voices[1])
    parts = [
        Part(0, ids(9), 0, None),
        Part(1, ids(12)[5:], 5, any_oracle.voices[1]),
        Part(2, ids(3), 0, any_oracle.voices[2]),
    ]
    then = ([7, 8, 9], [9, 12, 3], [part.adapter for part in parts])
    path.prefill([begun])
    apart = torch.cat([path.prefill([part]) for part in parts])
    said_apart = path.decode(*then)
    twin = path.apart(4, 64)
    twin.prefill([begun])
    steps = []
    step = Forward._step
    monkeypatch.setattr(Forward, "_step", lambda self, *of: steps.append(of) or step(self, *of))
    together = twin.prefill(parts)
    assert len(steps) == 1
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(twin.decode(*then), said_apart, rtol=1e-4, atol=1e-4)


def test_together_are_read_those_side_by_side_that_need_little_padding(path: Forward) -> None:
    def groups(*parts: Part) -> list[int]:
        return [len(group) for group in path._groups(parts)]

    short, long = ids(4), ids(4 + STEP)
    assert groups(Part(0, short, 0, None), Part(1, long, 0, None)) == [2]
    assert groups(Part(0, short, 0, None), Part(1, [*long, 1], 0, None)) == [1, 1]
    assert groups(Part(0, short, 0, None), Part(2, short, 0, None)) == [1, 1]
    # What is padded must have room too.
    assert groups(Part(0, short, 60, None), Part(1, [*short, 1], 0, None)) == [1, 1]
    assert groups(*[Part(row, short, 0, None) for row in range(4)]) == [4]


def test_the_cache_is_read_in_strides_up_to_its_end(
    path: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path.apart(1, 2 * STRIDE + 3)
    read: list[int] = []
    kind = type(path)
    run = kind._run
    monkeypatch.setattr(
        kind,
        "_run",
        lambda self, ids, at, used, told: read.append(used) or run(self, ids, at, used, told),
    )
    path.prefill([Part(0, ids(STRIDE), 0, None)])
    for place in (STRIDE, STRIDE + 1, 2 * STRIDE - 1, 2 * STRIDE, 2 * STRIDE + 2):
        path.decode([7], [place], [None])
    assert read == [STRIDE, *[2 * STRIDE] * 3, *[2 * STRIDE + 3] * 2]
