"""Selects the runner that may serve: only one whose answers lie as near to the truth as those of
transformers' own forward.

The truth is what the model says in float32 along a question and its answer, the probe. A runner
reads the probe with the adapter and, beside it, without, over a cache of its own. Its logits may
lie a little further from the truth than those of transformers in the model's type, for all rounding
is alike; in eight bits they may give away a number of nats. Where they do not, the next slower
runner serves.
"""

import logging
import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from chatbot.engine.local.kernels import library
from chatbot.engine.local.runners import llama_cpu
from chatbot.engine.local.runners.fused_linear import LLAMA_FAMILY
from chatbot.engine.local.runners.layerwise import layerwise_logits
from chatbot.engine.local.runners.llama_cpu import LlamaCpuRunner, LlamaInt8Runner
from chatbot.engine.local.runners.llama_torch import LlamaTorchRunner
from chatbot.engine.local.runners.runner import Chunk, ModelRunner
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.model.adapter import LoraMatrices
from chatbot.model.chat_template import encode_answer

log = logging.getLogger(__name__)

FLOAT32_TOLERANCE = 1e-3
"""How far from the truth, relative to its norm, the logits of a float32 model may lie."""
ROUNDING_MARGIN = 1.2
"""How many times further from it than transformers' own those of other types may lie."""
SAME_FORWARD = 0.05
"""How far, relative to their norm, the logits of two orders of the same sums in bfloat16 may lie
apart."""
MAX_INT8_KL, ADAPTER_MARGIN = 0.01, 1.5
"""How many nats a token the answers in eight bits may lie from the truth; those of an adapter so
many times as far, for what it says of one short text varies more."""
PROBE_QUESTION = "Hello! What can you do for me?"
PROBE_ANSWER = """I answer questions, as well as I can; when somebody corrects an answer, I know \
better from then on.

A parcel that was sent on Monday arrives on Wednesday. Water boils at 100 degrees, Paris is the \
capital of France, and 12 times 12 is 144.

1. Tell me what you would like to know.
2. If the answer is wrong, press the thumb that points down.
3. Write the right one: `print("thank you")` is what I would say then.

Ich verstehe auch andere Sprachen ein wenig."""
"""What runners are compared on. As answers have, it has prose, numbers, a list, code and another
language; and it is long, for what a few tokens have lost says little of the others."""
PROBE_TOKENS, PROBE_PRODUCTS, MIN_PROBE_TOKENS = 128, 3e11, 16
"""Tokens of the answer, at most; fewer where float32 would take more products for them, some
seconds on two cores, but never fewer than the last."""
LOGGED_NAMES = {"llama_cpu": "native", "llama_torch": "fast"}
"""Names of the runners in the log, which alerts may search for."""


@dataclass(frozen=True)
class Probe:
    """Holds the tokens of a question and its answer, which runners are compared on."""

    ids: list[int]
    prompt_tokens: int
    """How many of `ids` are the prompt: no model writes those, and eight bits may garble them."""


@dataclass(frozen=True)
class Truth:
    """Holds what the model says along a probe in float32, with an adapter or (None) without."""

    adapter: str | None
    probe: Probe
    logits: torch.Tensor
    """[tokens, vocab], after each of the probe's tokens."""
    allowed_distance: float
    """See `distance`."""

    @property
    def allowed_nats(self) -> float:
        """Return how far eight bits may lie from it, see `lost_nats`."""
        return MAX_INT8_KL if self.adapter is None else ADAPTER_MARGIN * MAX_INT8_KL


def encode_probe(tokenizer: PreTrainedTokenizerBase, parameters: int) -> Probe:
    """Return the probe for a model of so many parameters: the larger it is, the shorter."""
    question = [{"role": "user", "content": PROBE_QUESTION}]
    prompt, answer = encode_answer(tokenizer, question, PROBE_ANSWER)
    affordable = max(MIN_PROBE_TOKENS, int(PROBE_PRODUCTS / parameters) - len(prompt))
    return Probe(prompt + answer[: min(PROBE_TOKENS, affordable)], len(prompt))


def measure_truth(
    reference: TransformersRunner,
    probe: Probe,
    adapter: str | None = None,
    lora: LoraMatrices | None = None,
) -> Truth | None:
    """Compute the truth of an adapter on any thread, beside running streams; that of the base
    before there are any, None if no other runner may serve it."""
    if reference.model.config.model_type not in LLAMA_FAMILY:
        return None
    truth = layerwise_logits(reference, probe.ids, lora, torch.float32)
    rounded, allowed = truth, FLOAT32_TOLERANCE
    if reference.dtype != torch.float32:
        rounded = layerwise_logits(reference, probe.ids, lora, reference.dtype)
        allowed = ROUNDING_MARGIN * distance(rounded, truth)
    measured = Truth(adapter, probe, truth, allowed)
    if adapter is None and not _is_whole(reference, measured, rounded):
        return None
    return measured


def _is_whole(reference: TransformersRunner, truth: Truth, rounded: torch.Tensor) -> bool:
    """Tell whether the layers are all that computes the base: some models have hooks."""
    logits, _ = probe_logits(reference, truth)
    far = distance(logits, rounded)
    if far <= SAME_FORWARD or not rounded.isfinite().all():
        return True
    text = (
        f"The fast path is off: this model computes more than its layers do, whose logits lie "
        f"{far:.4f} from its own. Answers are right but slower; please report this model."
    )
    _note(reference, logging.WARNING, text)
    return False


def select_runner(reference: TransformersRunner, truth: Truth | None, int8: bool) -> ModelRunner:
    """Return the runner for the base: in eight bits if that is wanted and near enough, else
    exact."""
    reason = llama_cpu.unsupported_reason(reference)
    if int8 and reason is None:
        return checked_runner(LlamaInt8Runner(reference), truth, truth)
    if int8:
        text = f"int8 is off: {reason} Answers come from the exact weights, more slowly."
        _note(reference, logging.WARNING, text)
    return select_exact(reference, truth, truth)


def select_exact(
    reference: TransformersRunner, truth: Truth | None, base_truth: Truth | None
) -> ModelRunner:
    """Return the fastest runner that fits the model and is near enough to the truth."""
    if truth is None:
        return reference
    if (reason := llama_cpu.unsupported_reason(reference)) is None:
        return checked_runner(LlamaCpuRunner(reference), truth, base_truth)
    if reference.cpu:
        _note(reference, logging.INFO, f"Steps are computed by torch, more slowly: {reason}")
    return checked_runner(LlamaTorchRunner(reference), truth, base_truth)


def checked_runner(
    runner: ModelRunner, truth: Truth | None, base_truth: Truth | None
) -> ModelRunner:
    """Return the runner if it is near enough to the truth of an adapter, or of the base, else the
    next slower one that is; between two forwards only."""
    reference = runner.reference()
    if runner is reference or truth is None or base_truth is None:
        return runner
    assert isinstance(reference, TransformersRunner)  # which every runner is made from
    what = truth.adapter or "the base"
    pairs = list(zip(probe_logits(runner, truth), (truth, base_truth), strict=True))
    # Where the model itself computes no numbers there is nothing to compare with.
    if not all(each.logits.isfinite().all() for _, each in pairs):
        return runner
    if runner.name == "int8":
        lost = [(lost_nats(logits, each), each.allowed_nats) for logits, each in pairs]
        if all(nats <= limit for nats, limit in lost):
            return runner
        nats, limit = max(lost, key=lambda pair: pair[0] - pair[1])
        text = (
            f"int8 is off: with {what} its answers lie {nats:.4f} nats a token from those in "
            f"float32, and {limit:.4f} is allowed. Answers come from the exact weights, more "
            "slowly."
        )
        _note(reference, logging.WARNING, text)
        runner.restore_weights()
        return select_exact(reference, truth, base_truth)
    # Both together: how one rounding falls out beside another varies by a quarter with the text.
    far = math.hypot(*(distance(logits, each.logits) for logits, each in pairs))
    limit = math.hypot(*(each.allowed_distance for _, each in pairs))
    if far <= limit:
        return runner
    by_amx = runner.name == "llama_cpu" and library.refuse_amx()
    text = (
        f"The {'AMX' if by_amx else LOGGED_NAMES[runner.name]} path is off: with {what} its logits "
        f"lie {far:.4f} from those in float32, and {limit:.4f} is allowed. Answers are right but "
        "slower; please report this model."
    )
    _note(reference, logging.WARNING, text)
    runner.restore_weights()
    if by_amx:
        return checked_runner(LlamaCpuRunner(reference), truth, base_truth)
    if runner.name == "llama_cpu":
        return checked_runner(LlamaTorchRunner(reference), truth, base_truth)
    return reference


def _note(reference: TransformersRunner, level: int, text: str) -> None:
    """Log why another runner computes, and keep it for the status."""
    log.log(level, "%s", text)
    reference.notes.append(text)


def distance(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return how far logits lie from the true ones, relative to the norm of these."""
    return float((logits.float() - truth).norm() / truth.norm())


def divergence(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of the true next tokens from these, in nats."""
    wanted, got = truth.log_softmax(-1), logits.float().log_softmax(-1)
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


def lost_nats(logits: torch.Tensor, truth: Truth) -> float:
    """Return the mean `divergence` along the probe's answer."""
    first = truth.probe.prompt_tokens - 1
    return divergence(logits[first:], truth.logits[first:])


@torch.inference_mode()
def probe_logits(runner: ModelRunner, truth: Truth) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [tokens, vocab] of the probe with the truth's adapter, and beside it without:
    chunks of both, then a chunk of one beside a token of the other, and the other way round.
    Together they use prefill, decoding and a mixture of adapters."""
    ids = truth.probe.ids
    end = len(ids)
    runner = runner.with_own_cache(2, end)
    half, last = end // 2, end - 1
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for ends in ((half, half), (last, half + 1), (end, end)):
        starts = [sum(map(len, row)) for row in rows]
        chunks = [
            Chunk(row, ids[start:stop], start, adapter, num_logits=stop - start)
            for row, (start, stop, adapter) in enumerate(
                zip(starts, ends, (truth.adapter, None), strict=True)
            )
        ]
        logits = runner.forward(chunks).clone()
        first = len(chunks[0].ids)
        for row, part in zip(rows, (logits[:first], logits[first:]), strict=True):
            row.append(part)
    with_adapter, without = (torch.cat(row) for row in rows)
    return with_adapter, without
