"""Encodes the corpus as batches of token ids, with loss on the answers only."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.starter.corpus import MIXTURE, Corpus, Message, Sample

IGNORE_INDEX = -100
"""The label that torch's cross_entropy leaves out."""


def render_pieces(messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a conversation as the chat template writes it, and whether it trains."""
    for message in messages:
        yield f"<|im_start|>{message['role']}\n", False
        yield f"{message['content']}<|im_end|>", message["role"] == "assistant"
        yield "\n", False


def encode_samples(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast) -> list[Tensor]:
    """Return a (2, length) tensor a sample: token ids, and labels that leave out all but answers.

    The corpus is ours and holds no special token, so nothing needs escaping.
    """
    pieces = [list(render_pieces(sample.messages)) for sample in samples]
    flat = tokenizer([text for piece in pieces for text, _ in piece])["input_ids"]
    encoded, next_piece = [], 0
    for piece in pieces:
        ids: list[int] = []
        labels: list[int] = []
        for _, trains in piece:
            piece_ids = flat[next_piece]
            ids += piece_ids
            labels += piece_ids if trains else [IGNORE_INDEX] * len(piece_ids)
            next_piece += 1
        encoded.append(torch.tensor([ids, labels]))
    return encoded


def draw_batches(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    tokens: int,
    chunk: int = 3000,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield (2, rows, length) batches without end, of conversations of like length.

    A batch has at most `tokens` tokens, padding included; `chunk` conversations are sorted at once.

    Right padding needs no mask: no token attends to what comes after it.
    """
    rng = random.Random(seed)
    while True:
        samples = [corpus.draw(MIXTURE) for _ in range(chunk)]
        rows = sorted(encode_samples(samples, tokenizer), key=lambda row: row.shape[1])
        grouped: list[list[Tensor]] = [[]]
        for row in rows:
            if (len(grouped[-1]) + 1) * row.shape[1] > tokens:
                grouped.append([])
            grouped[-1].append(row)
        rng.shuffle(grouped)
        yield from (pad_rows(group) for group in grouped)


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Pad rows of unlike length into one (2, rows, length) tensor."""
    batch = torch.full((2, len(rows), max(row.shape[1] for row in rows)), IGNORE_INDEX)
    batch[0] = 0
    for n, row in enumerate(rows):
        batch[:, n, : row.shape[1]] = row
    return batch
