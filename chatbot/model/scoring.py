"""Scores given answers: how likely a model finds each of their tokens.

Training uses it to see what is learnt, evaluation to compare two adapters.
"""

from collections.abc import Sequence
from typing import Any

import torch

BATCH_SIZE = 16
"""Answers that go through the model together."""


@torch.no_grad()
def token_logprobs(
    model: Any, rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int
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


def _batch_logprobs(
    model: Any, rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int
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
