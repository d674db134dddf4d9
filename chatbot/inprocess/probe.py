"""May the fast path serve? Only where it computes what transformers' own forward computes.

Both read a prompt and what the adapter itself says to it, in a cache of their own, so that running
streams do not notice. Eight bits may differ by more than rounding; where they differ by too much,
the fast path goes on with the weights as they are.
"""

import logging

import torch

from chatbot.inprocess.fast import FAMILY, Fast
from chatbot.inprocess.forward import Forward
from chatbot.inprocess.product import Int8, Layout, Product
from chatbot.inprocess.slots import SlotCache

log = logging.getLogger(__name__)

ANSWER = 12
"""Tokens of its own that an adapter is compared on."""
TOLERANCE = {torch.float32: 1e-3}
"""How far the logits may lie apart, as a part of their size; other types round more coarsely."""
COARSE = 0.05
INT8 = 0.1


def chosen(plain: Forward, prompt: list[int], *, int8: bool = False) -> Forward:
    """The fast path where it fits the model and agrees, in eight bits if wanted; else the plain."""
    kind = plain.model.config.model_type
    if kind not in FAMILY:
        if int8:
            log.warning("int8 is off: it has no path for %s models, only for %s.", kind, FAMILY)
        return plain
    expected = logits(plain, prompt, None)
    fast = Fast(plain.model, plain.rows, plain.cache, _layout(plain, int8))
    path = kept(fast, prompt, expected, None)
    return path if fast.exact else checked(path, prompt, None)


def checked(path: Forward, prompt: list[int], adapter: str | None) -> Forward:
    """The path to go on with, now that there is this adapter; between two forwards only."""
    if not isinstance(path, Fast):
        return path
    ids = [*prompt, *said(path, prompt, adapter)]
    return kept(path, ids, logits(path.plain(), ids, adapter), adapter)


def kept(fast: Fast, ids: list[int], expected: torch.Tensor, adapter: str | None) -> Forward:
    """The fast path if it finds what was expected; otherwise a slower one, and a warning."""
    apart = float((logits(fast, ids, adapter) - expected).norm() / expected.norm())
    coarse = TOLERANCE.get(fast.dtype, COARSE) if fast.exact else INT8
    if apart <= coarse or not expected.isfinite().all():
        return fast
    what = adapter or "the base"
    if not fast.exact:
        log.warning(
            "int8 is off: with %s its logits lie %.3f from the exact ones, and %.3f is allowed. "
            "Answers come from the exact weights, more slowly.",
            what,
            apart,
            coarse,
        )
        fast.make_exact()
        return kept(fast, ids, expected, adapter)
    log.warning(
        "The fast path is off: with %s its logits lie %.3f from those of transformers. Answers "
        "are right but slower; please report this model.",
        what,
        apart,
    )
    fast.give_back()
    return fast.plain()


@torch.inference_mode()
def said(path: Forward, prompt: list[int], adapter: str | None) -> list[int]:
    """The next tokens after the prompt, greedily and past any end."""
    path = path.over(SlotCache(1, len(prompt) + ANSWER))
    ids = [int(path.prefill(0, prompt, 0, adapter).argmax())]
    while len(ids) < ANSWER:
        place = len(prompt) + len(ids) - 1
        ids.append(int(path.decode(ids[-1:], [place], [adapter])[0].argmax()))
    return ids


@torch.inference_mode()
def logits(path: Forward, ids: list[int], adapter: str | None) -> torch.Tensor:
    """[5, vocabulary]: two chunks of the adapter's row, one of the base's, a token more of both."""
    path = path.over(SlotCache(2, len(ids)))
    half, last = len(ids) // 2, len(ids) - 1
    return torch.stack(
        [
            path.prefill(0, ids[:half], 0, adapter),
            path.prefill(0, ids[half:last], half, adapter),
            path.prefill(1, ids[:half], 0, None),
            *path.decode([ids[last], ids[half]], [last, half], [adapter, None]),
        ]
    ).float()


def _layout(plain: Forward, int8: bool) -> type[Layout]:
    if int8 and not Int8.available(plain.like):
        log.warning("int8 is off: this machine or this version of torch has no kernels for it.")
        return Product
    return Int8 if int8 else Product
