"""Which worker gets a request."""

from types import SimpleNamespace
from typing import Any

from chatbot.engine.protocol import (
    Request,
)
from chatbot.engine.workers.router import BLOCK_TOKENS, SMALL_BATCH, PrefixRouter


def fake_worker(num_streams: int = 0, scales_with_cores: bool = False) -> Any:
    info = SimpleNamespace(scales_with_cores=scales_with_cores)
    return SimpleNamespace(num_streams=num_streams, info=info)


def test_a_conversation_goes_on_where_it_was_read_unless_that_worker_is_busier() -> None:
    workers = [fake_worker(1), fake_worker()]
    router, history = PrefixRouter(), list(range(4 * BLOCK_TOKENS))
    assert router.choose(Request(history), workers) is workers[1]
    workers = [fake_worker(), workers[1]]
    workers[1].num_streams = 1
    longer = Request([*history, *range(BLOCK_TOKENS)])
    assert router.choose(longer, workers) is workers[1], "who read it has only one more to serve"
    assert router.choose(Request(longer.prompt_ids, "a-1"), workers) is workers[0]
    assert (
        router.choose(Request([*history[:BLOCK_TOKENS], *[9] * 4 * BLOCK_TOKENS]), workers)
        is workers[0]
    )
    workers[1].num_streams = 5
    assert router.choose(longer, workers) is workers[0]
    assert router.choose(longer, workers[:1]) is workers[0], "and one that is gone is not asked"


def test_few_streams_are_one_workers_where_it_takes_all_cores_for_them() -> None:
    workers = [fake_worker(scales_with_cores=True) for _ in range(3)]
    router, served = PrefixRouter(), []
    for number in range(3 * SMALL_BATCH):
        chosen = router.choose(Request([number]), workers)
        served.append([worker is chosen for worker in workers].index(True))
        chosen.num_streams += 1
    assert served == [worker for worker in range(3) for _ in range(SMALL_BATCH)]
    workers[0].num_streams = SMALL_BATCH + 2
    assert router.choose(Request([0]), workers) is workers[1], "many are shared out"
    workers[2].num_streams = 1
    assert router.choose(Request([0]), workers) is workers[2], "and brought together as they end"
