"""Decides how many workers a machine can run."""

from chatbot.engine.workers.messages import WorkerInfo
from chatbot.model.base import FLOAT32_MAX_PARAMETERS

MAX_WORKERS = 4
"""The most workers unless the settings say otherwise: each of them holds all weights."""


def worker_count(info: WorkerInfo, cores: int, free_memory: int) -> int:
    """Return how many workers suit ``cores`` and ``free_memory`` (bytes), given the first one's
    ``info``.

    A small model gets one: the other cores serve HTTP and training. A worker that scales with
    cores gets two of them, for it gains more from a second core than another worker would, which
    has to read all weights again.
    """
    if info.device != "cpu" or info.num_parameters <= FLOAT32_MAX_PARAMETERS:
        return 1
    # The first worker has its weights already; the others may take half of what is free.
    memory_limit = 1 + free_memory // (2 * info.weight_bytes)
    cores_per_worker = 2 * info.threads if info.scales_with_cores else info.threads
    return max(1, min(cores // cores_per_worker, memory_limit, MAX_WORKERS))
