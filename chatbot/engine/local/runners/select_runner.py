"""Which path may serve? Only one that computes what transformers' own forward computes.

Both read a prompt and what the adapter itself says to it, in a cache of their own, so that running
streams do not notice. Eight bits may differ by more than rounding; where they differ by too much,
the exact weights serve.
"""

import logging

import torch

from chatbot.engine.local.runners import llama_cpu
from chatbot.engine.local.runners.fused_linear import FAMILY
from chatbot.engine.local.runners.llama_cpu import LlamaCpuRunner, LlamaInt8Runner
from chatbot.engine.local.runners.llama_torch import LlamaTorchRunner
from chatbot.engine.local.runners.runner import Chunk, ModelRunner
from chatbot.engine.local.runners.transformers_runner import TransformersRunner

log = logging.getLogger(__name__)

ANSWER = 12
"""Tokens of its own that an adapter is compared on."""
TOLERANCE = {torch.float32: 1e-3}
"""How far the logits may lie apart, as a part of their size; other types round more coarsely."""
COARSE = 0.05
INT8 = 0.1


def chosen(plain: TransformersRunner, prompt: list[int], int8: bool) -> ModelRunner:
    """The path for the base: in eight bits if that is wanted and near enough, else exact."""
    reason = llama_cpu.unfit(plain)
    if int8 and reason is None:
        return checked(LlamaInt8Runner(plain), prompt, None)
    if int8:
        log.warning("int8 is off: %s Answers come from the exact weights, more slowly.", reason)
    return exact(plain, prompt, None)


def exact(plain: TransformersRunner, prompt: list[int], adapter: str | None) -> ModelRunner:
    """The fastest path that fits the model and agrees."""
    if plain.model.config.model_type not in FAMILY:
        return plain
    if (reason := llama_cpu.unfit(plain)) is None:
        return checked(LlamaCpuRunner(plain), prompt, adapter)
    if plain.cpu:
        log.info("Steps are computed by torch, more slowly: %s", reason)
    return checked(LlamaTorchRunner(plain), prompt, adapter)


def checked(path: ModelRunner, prompt: list[int], adapter: str | None) -> ModelRunner:
    """The path to go on with, now that there is this adapter; between two steps only."""
    plain = path.reference()
    if path is plain:
        return path
    ids = [*prompt, *said(path, prompt, adapter)]
    expected = logits(plain, ids, adapter)
    apart = float((logits(path, ids, adapter) - expected).norm() / expected.norm())
    allowed = INT8 if path.name == "int8" else TOLERANCE.get(plain.dtype, COARSE)
    if apart <= allowed or not expected.isfinite().all():
        return path
    path.restore_weights()
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
        "The %s path is off: with %s its logits lie %.3f from those of transformers. Answers "
        "are right but slower; please report this model.",
        path.name,
        what,
        apart,
    )
    return checked(LlamaTorchRunner(plain), prompt, adapter) if path.name == "native" else plain


@torch.inference_mode()
def said(path: ModelRunner, prompt: list[int], adapter: str | None) -> list[int]:
    """The next tokens after the prompt, greedily and past any end."""
    path = path.with_own_cache(1, len(prompt) + ANSWER)
    ids = [int(path.forward([Chunk(0, prompt, 0, adapter)]).argmax())]
    while len(ids) < ANSWER:
        place = len(prompt) + len(ids) - 1
        ids.append(int(path.forward([Chunk(0, ids[-1:], place, adapter)]).argmax()))
    return ids


@torch.inference_mode()
def logits(path: ModelRunner, ids: list[int], adapter: str | None) -> torch.Tensor:
    """[6, vocabulary]: a chunk of the adapter's row and of the base's, then another of one beside a
    token of the other, and the other way round."""
    path = path.with_own_cache(2, len(ids))
    half, last = len(ids) // 2, len(ids) - 1
    steps = [
        [Chunk(0, ids[:half], 0, adapter), Chunk(1, ids[:half], 0, None)],
        [Chunk(0, ids[half:last], half, adapter), Chunk(1, ids[half : half + 1], half, None)],
        [Chunk(0, ids[last:], last, adapter), Chunk(1, ids[half + 1 : last], half + 1, None)],
    ]
    return torch.cat([path.forward(parts).clone() for parts in steps]).float()
