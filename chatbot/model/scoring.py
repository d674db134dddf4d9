"""Scores given answers: how likely a model finds each of their tokens.

Training uses it to see what is learnt, evaluation to compare two adapters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    Each is a float32 tensor [len(answer)] on the CPU. The model should be in eval mode. Rows go
    through it 16 at a time, those of like length together, which saves padding.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    found: dict[int, torch.Tensor] = {}
    for start in range(0, len(rows), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        logprobs = _batch_logprobs(model, [rows[i] for i in batch], pad_token_id)
        found |= zip(batch, logprobs, strict=True)
    return [found[i] for i in range(len(rows))]


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


def logprobs_before(
    model: Any, chosen: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the log-probabilities of the whole vocabulary for the chosen tokens, given all before
    each: float32 [number of chosen tokens, vocabulary].

    `chosen`, `ids` and `mask` are [rows, tokens]; a row's first token cannot be chosen. The head
    computes nothing of other tokens, which takes longer than a small base's layers.
    """
    before = torch.zeros_like(chosen)
    before[:, :-1] = chosen[:, 1:]  # the hidden state of a position is about the token after it
    with _head_of(model, before):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)


@contextmanager
def _head_of(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Have the model's head see the hidden states of some positions only, as those of one row."""
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0][positions][None],)
    )
    try:
        yield
    finally:
        hook.remove()


def _answer_logprobs(model: Any, row: EncodedAnswer) -> torch.Tensor:
    """Return the log-probabilities of the whole vocabulary at each of an answer's tokens."""
    prompt, answer = row
    ids = torch.tensor([prompt + answer], device=next(model.parameters()).device)
    chosen = torch.arange(ids.shape[1], device=ids.device)[None] >= len(prompt)
    return logprobs_before(model, chosen, ids)


def _batch_logprobs(
    model: Any, rows: Sequence[EncodedAnswer], pad_token_id: int
) -> list[torch.Tensor]:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros_like(ids)
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        mask[row, :length] = 1
        chosen[row, len(prompt) : length] = True
    device = next(model.parameters()).device
    logprobs = logprobs_before(model, chosen.to(device), ids.to(device), mask.to(device)).cpu()
    found = logprobs.gather(-1, ids[chosen][:, None])[:, 0]
    return list(torch.split(found, [len(answer) for _, answer in rows]))
