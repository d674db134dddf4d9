"""How many workers a machine bears."""

from chatbot.engine.workers.messages import Ready
from chatbot.model.base import FLOAT32_MAX_PARAMETERS

MOST = 4
"""Unless the settings say otherwise: each holds the weights."""


def how_many(ready: Ready, cores: int, free: int) -> int:
    """Workers that so many cores and free bytes bear. A small model needs no more than one: what
    is left of the cores is there for HTTP, and for a cycle. One that grows makes more of a second
    core than another worker would, which reads all weights a second time."""
    if ready.device != "cpu" or ready.parameters <= FLOAT32_MAX_PARAMETERS:
        return 1
    room = 1 + free // (2 * ready.weights)  # the first has its weights, half of the rest is left
    each = 2 * ready.threads if ready.grows else ready.threads
    return max(1, min(cores // each, room, MOST))
