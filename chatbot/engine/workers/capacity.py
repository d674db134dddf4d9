"""How many workers a machine bears."""

from chatbot.engine.workers.messages import WorkerInfo
from chatbot.model.base import FLOAT32_MAX_PARAMETERS

MAX_WORKERS = 4
"""Unless the settings say otherwise: each holds the weights."""


def worker_count(info: WorkerInfo, cores: int, free_memory: int) -> int:
    """Workers that so many cores and free bytes bear. A small model needs no more than one: what
    is left of the cores is there for HTTP, and for a cycle. One that grows makes more of a second
    core than another worker would, which reads all weights a second time."""
    if info.device != "cpu" or info.parameters <= FLOAT32_MAX_PARAMETERS:
        return 1
    memory_limit = 1 + free_memory // (
        2 * info.weights
    )  # the first has its weights, half of the rest is left
    cores_per_worker = 2 * info.threads if info.scales_with_cores else info.threads
    return max(1, min(cores // cores_per_worker, memory_limit, MAX_WORKERS))
