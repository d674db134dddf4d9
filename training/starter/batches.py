"""Turns the corpus into batches of token ids, with loss on the answers only."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.starter.corpus import MIXTURE, Corpus, Message, Sample

IGNORED = -100


def render(messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
    """The pieces of a conversation as the chat template writes it, and whether each is learnt."""
    for message in messages:
        yield f"<|im_start|>{message['role']}\n", False
        yield f"{message['content']}<|im_end|>", message["role"] == "assistant"
        yield "\n", False


def encode(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast) -> list[Tensor]:
    """A (2, length) tensor a sample: token ids, and labels that leave out all but the answers.

    Text of a corpus of our own: it holds no special token, so nothing needs escaping.
    """
    pieces = [list(render(sample.messages)) for sample in samples]
    flat = tokenizer([text for piece in pieces for text, _ in piece])["input_ids"]
    encoded, at = [], 0
    for piece in pieces:
        ids: list[int] = []
        labels: list[int] = []
        for _, learnt in piece:
            ids += flat[at]
            labels += flat[at] if learnt else [IGNORED] * len(flat[at])
            at += 1
        encoded.append(torch.tensor([ids, labels]))
    return encoded


def batches(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    tokens: int,
    chunk: int = 3000,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Endless (2, rows, length) batches of conversations of like length, of at most `tokens`.

    Right padding needs no mask: no token attends to what comes after it.
    """
    rng = random.Random(seed)
    while True:
        samples = [corpus.draw(MIXTURE) for _ in range(chunk)]
        rows = sorted(encode(samples, tokenizer), key=lambda row: row.shape[1])
        grouped: list[list[Tensor]] = [[]]
        for row in rows:
            if (len(grouped[-1]) + 1) * row.shape[1] > tokens:
                grouped.append([])
            grouped[-1].append(row)
        rng.shuffle(grouped)
        yield from (pad(group) for group in grouped)


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of unlike length as one (2, rows, length) tensor."""
    batch = torch.full((2, len(rows), max(row.shape[1] for row in rows)), IGNORED)
    batch[0] = 0
    for n, row in enumerate(rows):
        batch[:, n, : row.shape[1]] = row
    return batch
