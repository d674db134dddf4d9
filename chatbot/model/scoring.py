"""Scores given answers: how likely a model finds each of their tokens.

Training uses it to see what is learnt, evaluation to compare two adapters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    found: dict[int, torch.Tensor] = {}
    for numbers, batch in _batches(rows, BATCH_SIZE, pad_token_id, _device(model)):
        chosen = logprobs_before(model, *batch)
        ids = batch.ids[batch.chosen]
        of_tokens = chosen.gather(-1, ids[:, None])[:, 0].cpu()
        lengths = [len(rows[number][1]) for number in numbers]
        found |= zip(numbers, torch.split(of_tokens, lengths), strict=True)
    return [found[number] for number in range(len(rows))]


@torch.no_grad()
def divergences_from_base(
    model: Any, adapters: Sequence[str], rows: Sequence[EncodedAnswer], pad_token_id: int
) -> dict[str, list[float]]:
    """Return for each adapter how far it lies from its base along every (prompt ids, answer ids):
    the KL divergence of the base's probabilities from the adapter's, in nats, a token's mean.

    ``model`` is PEFT's, with these adapters, in eval mode. Base and adapters see the very same
    batches, 4 rows at a time: the whole vocabulary is held for each of their tokens.
    """
    found = {name: [0.0] * len(rows) for name in adapters}
    for numbers, batch in _batches(rows, BATCH_SIZE // 4, pad_token_id, _device(model)):
        with model.disable_adapter():
            expected = logprobs_before(model, *batch)
        lengths = [len(rows[number][1]) for number in numbers]
        for name in adapters:
            model.set_adapter(name, inference_mode=True)
            logprobs = logprobs_before(model, *batch)
            of_tokens = kl_div(logprobs, expected, reduction="none", log_target=True).sum(-1)
            for number, of_row in zip(numbers, torch.split(of_tokens, lengths), strict=True):
                found[name][number] = float(of_row.mean())
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


class _Batch(NamedTuple):
    """Holds rows that go through a model together, [rows, tokens]: which tokens are of the answers,
    the ids, and the mask of what is no padding."""

    chosen: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor


def _batches(
    rows: Sequence[EncodedAnswer], size: int, pad_token_id: int, device: torch.device
) -> Iterator[tuple[list[int], _Batch]]:
    """Yield the numbers of `size` rows of like length, and these rows as tensors."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1]))
    for start in range(0, len(rows), size):
        numbers = order[start : start + size]
        width = sum(map(len, rows[numbers[-1]]))
        ids = torch.full((len(numbers), width), pad_token_id)
        mask = torch.zeros_like(ids)
        chosen = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(rows[number] for number in numbers):
            length = len(prompt) + len(answer)
            ids[row, :length] = torch.tensor(prompt + answer)
            mask[row, :length] = 1
            chosen[row, len(prompt) : length] = True
        yield numbers, _Batch(chosen.to(device), ids.to(device), mask.to(device))


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
