"""Which path may serve? Only one that computes what transformers' own forward computes.

Both read a prompt and what the adapter itself says to it, in a cache of their own, so that running
streams do not notice. Eight bits may differ by more than rounding; where they differ by too much,
the exact weights serve.
"""

import logging
from importlib.util import find_spec

import torch

from chatbot.inprocess import pace
from chatbot.inprocess.fast import FAMILY, Fast
from chatbot.inprocess.forward import Forward
from chatbot.inprocess.path import Part, Path

log = logging.getLogger(__name__)

ANSWER = 12
"""Tokens of its own that an adapter is compared on."""
TOLERANCE = {torch.float32: 1e-3}
"""How far the logits may lie apart, as a part of their size; other types round more coarsely."""
COARSE = 0.05
INT8 = 0.1


def eight_bits(plain: Forward, threads: int, spare_bytes: int) -> Path | None:
    """The path in eight bits; None and a warning where model, machine or installation have none.

    Its cache has room for `spare_bytes` beside the rows.
    """
    if (reason := _no_eight_bits(plain)) is not None:
        log.warning("int8 is off: %s", reason)
        return None
    from chatbot.inprocess.int8 import Int8

    return Int8(plain, threads or pace.untried(plain.parameters), spare_bytes)


def exact(plain: Forward, prompt: list[int], adapter: str | None) -> Path:
    """The fast path where it fits the model and agrees; else the plain one."""
    if plain.model.config.model_type not in FAMILY:
        return plain
    return checked(Fast(plain), prompt, adapter)


def checked(path: Path, prompt: list[int], adapter: str | None) -> Path:
    """The path to go on with, now that there is this adapter; between two steps only."""
    plain = path.plain()
    if path is plain:
        return path
    ids = [*prompt, *said(path, prompt, adapter)]
    expected = logits(plain, ids, adapter)
    apart = float((logits(path, ids, adapter) - expected).norm() / expected.norm())
    allowed = INT8 if path.name == "int8" else TOLERANCE.get(plain.dtype, COARSE)
    if apart <= allowed or not expected.isfinite().all():
        return path
    path.give_back()
    what = adapter or "the base"
    if path.name == "int8":
        log.warning(
            "int8 is off: with %s its logits lie %.3f from the exact ones, and %.3f is allowed. "
            "Answers come from the exact weights, more slowly.",
            what,
            apart,
            allowed,
        )
        return exact(plain, prompt, adapter)
    log.warning(
        "The fast path is off: with %s its logits lie %.3f from those of transformers. Answers "
        "are right but slower; please report this model.",
        what,
        apart,
    )
    return plain


def _no_eight_bits(plain: Forward) -> str | None:
    """Why this model, machine or installation has no path in eight bits; None if it has."""
    kind = plain.model.config.model_type
    if kind not in FAMILY:
        return f"it has no path for {kind} models, only for {', '.join(sorted(FAMILY))}."
    if (act := plain.model.config.hidden_act) != "silu":
        return f"its path computes silu, and this model wants {act}."
    if plain.like.device.type != "cpu":
        return f"it is for CPUs, and the model is on {plain.like.device}."
    if find_spec("openvino") is None:
        return "OpenVINO is not there; pip install 'talkback[int8]' brings it."
    return None


@torch.inference_mode()
def said(path: Path, prompt: list[int], adapter: str | None) -> list[int]:
    """The next tokens after the prompt, greedily and past any end."""
    path = path.apart(1, len(prompt) + ANSWER)
    ids = [int(path.read([Part(0, prompt, 0, adapter)]).argmax())]
    while len(ids) < ANSWER:
        place = len(prompt) + len(ids) - 1
        ids.append(int(path.read([Part(0, ids[-1:], place, adapter)]).argmax()))
    return ids


@torch.inference_mode()
def logits(path: Path, ids: list[int], adapter: str | None) -> torch.Tensor:
    """[6, vocabulary]: a chunk of the adapter's row and of the base's, then another of one beside a
    token of the other, and the other way round."""
    path = path.apart(2, len(ids))
    half, last = len(ids) // 2, len(ids) - 1
    steps = [
        [Part(0, ids[:half], 0, adapter), Part(1, ids[:half], 0, None)],
        [Part(0, ids[half:last], half, adapter), Part(1, ids[half : half + 1], half, None)],
        [Part(0, ids[last:], last, adapter), Part(1, ids[half + 1 : last], half + 1, None)],
    ]
    return torch.cat([path.read(parts).clone() for parts in steps]).float()
