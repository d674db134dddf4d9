"""May the fast path serve? Only where it computes what transformers' own forward computes.

Both are asked a few tokens in a cache of their own, so that running streams do not notice.
"""

import logging

import torch
from transformers import PreTrainedModel

from chatbot.inprocess.fast import FAMILY, Fast
from chatbot.inprocess.forward import Forward
from chatbot.inprocess.rows import Rows
from chatbot.inprocess.slots import SlotCache

log = logging.getLogger(__name__)

LENGTH = 12
"""Positions that a probe fills at most."""
TOLERANCE = {torch.float32: 1e-3}
"""How far the logits may lie apart, as a part of their size; other types round more coarsely."""
COARSE = 0.05


def chosen(model: PreTrainedModel, rows: Rows, cache: SlotCache) -> Forward:
    """The fast path where it fits the model and agrees, else the plain one; the cache is theirs."""
    plain = Forward(model, rows, cache)
    if model.config.model_type not in FAMILY:
        return plain
    expected = said(plain, None)
    fast = Fast(model, rows, cache)
    return kept(fast, expected, said(fast, None), f"the base {model.config.model_type}")


def checked(path: Forward, adapter: str) -> Forward:
    """The path to go on with, now that there is one more adapter; between two forwards only."""
    if not isinstance(path, Fast):
        return path
    return kept(path, said(path.plain(), adapter), said(path, adapter), adapter)


def kept(fast: Fast, expected: torch.Tensor, found: torch.Tensor, what: str) -> Forward:
    """The fast path if it found what was expected; otherwise the plain one, and a warning."""
    apart = float((found - expected).norm() / expected.norm())
    if apart <= TOLERANCE.get(fast.dtype, COARSE) or not expected.isfinite().all():
        return fast
    log.warning(
        "The fast path is off: with %s its logits lie %.3f from those of transformers. Answers "
        "are right but slower; please report this model.",
        what,
        apart,
    )
    fast.give_back()
    return fast.plain()


@torch.inference_mode()
def said(path: Forward, adapter: str | None) -> torch.Tensor:
    """The logits after two prompts, one of them read in two chunks, and after one more token."""
    path = path.over(SlotCache(2, LENGTH))
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(path.vocabulary, (LENGTH,), generator=chance).tolist()
    return torch.stack(
        [
            path.prefill(0, ids[:3], 0, adapter),
            path.prefill(1, ids[3:6], 0, None),
            path.prefill(1, ids[6:9], 3, None),
            *path.decode(ids[9:11], [3, 6], [adapter, None]),
        ]
    ).float()
