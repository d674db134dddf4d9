"""How many workers a machine can run."""

import pytest

from chatbot.engine.workers.capacity import MAX_WORKERS, worker_count
from chatbot.engine.workers.messages import WorkerInfo

GIB = 2**30


@pytest.mark.parametrize(
    "parameters, weights, threads, device, cores, free, count",
    [
        (135_000_000, GIB // 4, 1, "cpu", 2, 8 * GIB, 2),
        (135_000_000, GIB // 4, 2, "cpu", 2, 8 * GIB, 1),
        (135_000_000, GIB // 4, 1, "cpu", 64, 64 * GIB, MAX_WORKERS),
        (135_000_000, 4 * GIB, 1, "cpu", 8, 10 * GIB, 2),
        (5_000_000, 2**20, 1, "cpu", 2, 8 * GIB, 1),
        (135_000_000, GIB // 4, 1, "cuda:0", 8, 8 * GIB, 1),
        (8_000_000_000, 16 * GIB, 16, "cpu", 16, GIB, 1),
    ],
)
def test_as_many_workers_as_cores_and_memory_bear(
    parameters: int, weights: int, threads: int, device: str, cores: int, free: int, count: int
) -> None:
    info = WorkerInfo(16, 4096, threads, device, parameters, weights)
    assert worker_count(info, cores, free) == count


@pytest.mark.parametrize("cores, count", [(1, 1), (2, 1), (4, 2), (6, 3), (64, MAX_WORKERS)])
def test_workers_that_grow_have_two_cores_each(cores: int, count: int) -> None:
    info = WorkerInfo(16, 4096, 1, "cpu", 135_000_000, GIB // 4, scales_with_cores=True)
    assert worker_count(info, cores, 64 * GIB) == count
