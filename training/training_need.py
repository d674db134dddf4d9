"""Estimates what memory a training needs, from the base's sizes, the rows and the recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chatbot.engine.machine.memory_need import MemoryNeed, MemoryPart, ModelSize
from chatbot.model.lora import RANK
from feedback.snapshot import Record
from training.thoughts import ANSWERS

BYTES_PER_TOKEN = 3
"""Of a row's text in UTF-8: rather few, so that rows are rather taken for longer than they are."""
OPTIMIZER_BYTES = 20
"""Of each number of an adapter: itself and its gradient in float32, two moments of Adam, and the
reference of DPO."""
HIDDEN_BYTES, INTERMEDIATE_BYTES, LOGIT_BYTES = 48, 24, 16
"""What backpropagation keeps of a token, for each number of a layer's hidden state, of its MLP's,
and of the vocabulary; measured on SmolLM2-135M in bfloat16 with adapters in float32."""
SURE_SHARE = 0.25
"""How much of what is estimated is surely needed."""


class Batches(NamedTuple):
    """Holds the rows that one phase trains on, and how many answers of how many tokens at most go
    through the model together."""

    rows: Sequence[Record]
    answers: int
    max_length: int | None

    def longest(self) -> int:
        """Return about how many tokens the longest row has that is not left out as too long."""
        tokens = max(map(_count_bytes, self.rows), default=0) // BYTES_PER_TOKEN
        return min(tokens, self.max_length or tokens)


def training_need(name: str, folder: Path, phases: Sequence[Batches]) -> MemoryNeed:
    """Return what it takes to train an adapter of the base in a folder on this machine's CPU."""
    size = ModelSize.read(folder)
    widest = max(phases, key=lambda phase: phase.answers * phase.longest())
    activations = widest.answers * widest.longest() * _bytes_per_token(size)
    adapter = OPTIMIZER_BYTES * _count_adapter(size)
    what = f"up to {{}} for {widest.answers} answers at once of about {widest.longest()} tokens"
    return MemoryNeed(
        f"Training on {name}",
        "Take a smaller base, or a lower per_device_train_batch_size or max_length in "
        "[training.sft] and [training.dpo].",
        [
            MemoryPart("{} for weights", size.weights, size.weights),
            MemoryPart("{} for the adapter and its optimizer", adapter, adapter),
            MemoryPart(what, activations, int(activations * SURE_SHARE)),
        ],
    )


def _count_bytes(row: Record) -> int:
    """Return the bytes of a row's prompt, with a thought where it has one, and longer answer."""
    answers = [row[key] for key in ANSWERS if key in row]
    prompt = sum(len(turn["content"].encode()) for turn in row["prompt"])
    prompt += len(row.get("thought", "").encode())
    return prompt + max(len(answer[-1]["content"].encode()) for answer in answers)


def _bytes_per_token(size: ModelSize) -> int:
    layer = HIDDEN_BYTES * size.hidden + INTERMEDIATE_BYTES * size.intermediate
    return size.layers * layer + LOGIT_BYTES * size.vocabulary


def _count_adapter(size: ModelSize) -> int:
    """Count the numbers of an adapter on the seven linears of each layer."""
    attention = 4 * size.hidden + 2 * (size.hidden + size.kv_width)
    return size.layers * RANK * (attention + 3 * (size.hidden + size.intermediate))
