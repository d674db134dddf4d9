"""Kills a server under eight writers of feedback, again and again: nothing lost or twice."""

from collections.abc import Callable

import pytest

from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.conversations import add_answer
from tests.fixtures.kill_server import (
    MIN_ACKNOWLEDGED,
    FeedbackServer,
    FeedbackWriter,
    KillReport,
    run_kill_rounds,
)
from tests.fixtures.server_process import ServerProcess


@pytest.fixture
def writers(store: Store) -> list[FeedbackWriter]:
    id = add_answer(store, "When do you open?")
    return [FeedbackWriter(f"writer-{number}", id) for number in range(8)]


def assert_sound(tally: KillReport, kills: int) -> None:
    assert tally.lost == [] and tally.twice == 0 and tally.damage == "ok"
    assert tally.acknowledged >= kills * MIN_ACKNOWLEDGED
    assert tally.unanswered > 0, "no kill came between a word and its answer: it proves little"


@pytest.mark.slow
def test_kill_9_under_writers_loses_and_repeats_nothing(
    home: Home, writers: list[FeedbackWriter]
) -> None:
    assert_sound(run_kill_rounds(lambda: FeedbackServer(home), home, writers, 5), 5)


@pytest.mark.slow
def test_kill_9_of_the_whole_server_loses_and_repeats_nothing(
    home: Home, writers: list[FeedbackWriter], start_server: Callable[..., ServerProcess]
) -> None:
    assert_sound(run_kill_rounds(lambda: start_server().ready(), home, writers, 2), 2)
