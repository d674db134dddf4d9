"""Selects the runner that may serve: only one that computes what transformers' own forward does.

Both read a prompt and the adapter's own answer to it, over caches of their own, so that running
streams do not notice. Eight bits may differ by more than rounding; where they differ by too much,
the exact weights serve.
"""

import logging

import torch

from chatbot.engine.local.runners import llama_cpu
from chatbot.engine.local.runners.fused_linear import LLAMA_FAMILY
from chatbot.engine.local.runners.llama_cpu import LlamaCpuRunner, LlamaInt8Runner
from chatbot.engine.local.runners.llama_torch import LlamaTorchRunner
from chatbot.engine.local.runners.runner import Chunk, ModelRunner
from chatbot.engine.local.runners.transformers_runner import TransformersRunner

log = logging.getLogger(__name__)

ANSWER_TOKENS = 12
"""Tokens of its own answer that an adapter is compared on."""
TOLERANCE = {torch.float32: 1e-3}
"""How far the logits may differ, relative to their norm; other types round more coarsely."""
COARSE_TOLERANCE = 0.05
INT8_TOLERANCE = 0.1
LOGGED_NAMES = {"llama_cpu": "native", "llama_torch": "fast"}
"""Names of the runners in the log, which alerts may search for."""


def select_runner(reference: TransformersRunner, prompt: list[int], int8: bool) -> ModelRunner:
    """Return the runner for the base: in eight bits if that is wanted and near enough, else
    exact."""
    reason = llama_cpu.unsupported_reason(reference)
    if int8 and reason is None:
        return checked_runner(LlamaInt8Runner(reference), prompt, None)
    if int8:
        text = f"int8 is off: {reason} Answers come from the exact weights, more slowly."
        _note(reference, logging.WARNING, text)
    return select_exact(reference, prompt, None)


def select_exact(
    reference: TransformersRunner, prompt: list[int], adapter: str | None
) -> ModelRunner:
    """Return the fastest runner that fits the model and agrees with transformers."""
    if reference.model.config.model_type not in LLAMA_FAMILY:
        return reference
    if (reason := llama_cpu.unsupported_reason(reference)) is None:
        return checked_runner(LlamaCpuRunner(reference), prompt, adapter)
    if reference.cpu:
        _note(reference, logging.INFO, f"Steps are computed by torch, more slowly: {reason}")
    return checked_runner(LlamaTorchRunner(reference), prompt, adapter)


def checked_runner(runner: ModelRunner, prompt: list[int], adapter: str | None) -> ModelRunner:
    """Return the runner if its logits with this adapter are near enough to transformers', else the
    next slower one that agrees; between two forwards only."""
    reference = runner.reference()
    if runner is reference:
        return runner
    assert isinstance(reference, TransformersRunner)  # which every runner is made from
    ids = [*prompt, *greedy_answer(runner, prompt, adapter)]
    expected = probe_logits(reference, ids, adapter)
    error = float((probe_logits(runner, ids, adapter) - expected).norm() / expected.norm())
    int8 = runner.name == "int8"
    allowed = INT8_TOLERANCE if int8 else TOLERANCE.get(reference.dtype, COARSE_TOLERANCE)
    # Where transformers itself computes no numbers there is nothing to compare with.
    if error <= allowed or not expected.isfinite().all():
        return runner
    runner.restore_weights()
    what = adapter or "the base"
    if int8:
        text = (
            f"int8 is off: with {what} its logits lie {error:.3f} from the exact ones, and "
            f"{allowed:.3f} is allowed. Answers come from the exact weights, more slowly."
        )
        _note(reference, logging.WARNING, text)
        return select_exact(reference, prompt, adapter)
    text = (
        f"The {LOGGED_NAMES[runner.name]} path is off: with {what} its logits lie {error:.3f} "
        "from those of transformers. Answers are right but slower; please report this model."
    )
    _note(reference, logging.WARNING, text)
    if runner.name == "llama_cpu":
        return checked_runner(LlamaTorchRunner(reference), prompt, adapter)
    return reference


def _note(reference: TransformersRunner, level: int, text: str) -> None:
    """Log why another runner computes, and keep it for the status."""
    log.log(level, "%s", text)
    reference.notes.append(text)


@torch.inference_mode()
def greedy_answer(runner: ModelRunner, prompt: list[int], adapter: str | None) -> list[int]:
    """Return the next ANSWER_TOKENS tokens after the prompt, decoded greedily and past any end."""
    runner = runner.with_own_cache(1, len(prompt) + ANSWER_TOKENS)
    ids = [int(runner.forward([Chunk(0, prompt, 0, adapter)]).argmax())]
    while len(ids) < ANSWER_TOKENS:
        position = len(prompt) + len(ids) - 1
        ids.append(int(runner.forward([Chunk(0, ids[-1:], position, adapter)]).argmax()))
    return ids


@torch.inference_mode()
def probe_logits(runner: ModelRunner, ids: list[int], adapter: str | None) -> torch.Tensor:
    """Return logits [6, vocab] of three forwards over a row of the adapter's and a row of the
    base's: chunks of both, then a chunk of one beside a token of the other, and the other way
    round. Together they use prefill, decoding and a mixture of adapters."""
    runner = runner.with_own_cache(2, len(ids))
    half, last = len(ids) // 2, len(ids) - 1
    forwards = [
        [Chunk(0, ids[:half], 0, adapter), Chunk(1, ids[:half], 0, None)],
        [Chunk(0, ids[half:last], half, adapter), Chunk(1, ids[half : half + 1], half, None)],
        [Chunk(0, ids[last:], last, adapter), Chunk(1, ids[half + 1 : last], half + 1, None)],
    ]
    return torch.cat([runner.forward(chunks).clone() for chunks in forwards]).float()
