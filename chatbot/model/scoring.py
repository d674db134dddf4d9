"""Scores given answers: how likely a model finds each of their tokens.

Training uses it to see what is learnt, evaluation to compare two adapters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import kl_div

BATCH_SIZE = 16
"""Answers that go through the model together."""

EncodedAnswer = tuple[list[int], list[int]]
"""The token ids of a prompt and of its answer."""


@torch.no_grad()
def token_logprobs(
    model: Any, rows: Sequence[EncodedAnswer], pad_token_id: int
) -> list[torch.Tensor]:
    """Return for each (prompt ids, answer ids) the log-probability of every answer token.

    Each is a float32 tensor [len(answer)] on the CPU. The model should be in eval mode. Rows are
    taken in the given order, 16 at a time; rows of like length waste the least on padding.
    """
    return [
        logprobs
        for start in range(0, len(rows), BATCH_SIZE)
        for logprobs in _batch_logprobs(model, rows[start : start + BATCH_SIZE], pad_token_id)
    ]


@torch.no_grad()
def divergences_from_base(
    model: Any, adapters: Sequence[str], rows: Sequence[EncodedAnswer]
) -> dict[str, list[float]]:
    """Return for each adapter how far it lies from its base along every (prompt ids, answer ids):
    the KL divergence of the base's probabilities from the adapter's, in nats, a token's mean.

    ``model`` is PEFT's, with these adapters, in eval mode.
    """
    found: dict[str, list[float]] = {name: [] for name in adapters}
    for row in rows:
        with model.disable_adapter():
            expected = _answer_logprobs(model, row)
        for name in adapters:
            model.set_adapter(name, inference_mode=True)
            divergence = kl_div(
                _answer_logprobs(model, row), expected, reduction="sum", log_target=True
            )
            found[name].append(float(divergence) / len(row[1]))
    return found


def _answer_logprobs(model: Any, row: EncodedAnswer) -> torch.Tensor:
    """Return the log-probabilities of the whole vocabulary at each of an answer's tokens."""
    prompt, answer = row
    ids = torch.tensor([prompt + answer], device=next(model.parameters()).device)
    at = torch.arange(len(prompt) - 1, ids.shape[1] - 1, device=ids.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=at).logits[0]
    return torch.log_softmax(logits.float(), -1)


def _batch_logprobs(
    model: Any, rows: Sequence[EncodedAnswer], pad_token_id: int
) -> list[torch.Tensor]:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        mask[row, :length] = 1
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    # The logits at a position are about the token after it, hence the shift by one.
    logprobs = torch.log_softmax(logits[:, :-1].float().cpu(), -1)
    chosen = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    spans = [(len(prompt) - 1, len(prompt) + len(answer) - 1) for prompt, answer in rows]
    return [chosen[row, start:end] for row, (start, end) in enumerate(spans)]
