"""Measures how far each way to compute a model lies from the model in float32, on real text.

    python -m tests.bench.bench_accuracy                       # SmolLM2-135M-Instruct
    python -m tests.bench.bench_accuracy --base starter --adapter FOLDER

The text is Python's own documentation of its language (`pydoc_data`), in windows of so many tokens.
A distance is relative to the norm of the true logits; KL is in nats a token.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from chatbot.engine.local.kernels.library import kernel_library
from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.llama_cpu import LlamaCpuRunner, LlamaInt8Runner
from chatbot.engine.local.runners.llama_torch import LlamaTorchRunner
from chatbot.engine.local.runners.runner import Chunk, ModelRunner
from chatbot.engine.local.runners.select_runner import distance, divergence
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import Base, load_base
from chatbot.model.lora import target_modules
from tests.fixtures.real_model import find_real_model

TOPICS = ("types", "specialnames", "typesseq", "formatstrings", "class")


class Model:
    """Holds a base in a type, perhaps with an adapter."""

    def __init__(self, name: str, dtype: str, adapter: Path | None) -> None:
        self.base: Base = load_base(name, dtype=dtype)
        lora = LoraLayers(self.base.model, list(target_modules(self.base.model)))
        self.reference = TransformersRunner(self.base.model, lora, SlotKVCache(1, 1))
        self.adapter = adapter.name if adapter else None
        if adapter:
            matrices = verify_adapter(adapter, self.base).matrices
            lora.install(adapter.name, lora.prepare(matrices, self.reference.like))

    @torch.inference_mode()
    def logits(self, runner: ModelRunner, ids: list[int]) -> torch.Tensor:
        """Return the logits [tokens, vocab] after each of a window's tokens."""
        own = runner.with_own_cache(1, len(ids))
        return own.forward([Chunk(0, ids, 0, self.adapter, len(ids))]).float().clone()


def windows(tokenizer: PreTrainedTokenizerBase, tokens: int, window: int) -> Iterator[list[int]]:
    """Yield the text's tokens, window by window."""
    text = "\n".join(topics.topics[name] for name in TOPICS)
    ids = tokenizer(text).input_ids[:tokens]
    for start in range(0, len(ids) - window + 1, window):
        yield ids[start : start + window]


def measure(logits: torch.Tensor, truth: torch.Tensor, ids: list[int]) -> tuple[float, ...]:
    """Return distance, KL, how often the best token is the same, and the mean loss."""
    agree = (logits.argmax(-1) == truth.argmax(-1)).float().mean()
    loss = functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    return distance(logits, truth), divergence(logits, truth), float(agree), float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="SmolLM2-135M-Instruct unless named")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    options = parser.parse_args()
    name = options.base or str(find_real_model())
    exact = Model(name, "float32", options.adapter)
    rounded = Model(name, "bfloat16", options.adapter)
    parts = list(windows(exact.base.tokenizer, options.tokens, options.window))
    truths = [exact.logits(exact.reference, ids) for ids in parts]
    table = Table("computed by", "distance", "KL", "best token agrees", "perplexity")

    def add(label: str, model: Model, runner: ModelRunner) -> None:
        rows = [
            measure(model.logits(runner, ids), truth, ids)
            for ids, truth in zip(parts, truths, strict=True)
        ]
        far, nats, agree, loss = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        perplexity = math.exp(loss)
        table.add_row(label, f"{far:.4f}", f"{nats:.5f}", f"{agree:.1%}", f"{perplexity:.2f}")
        runner.restore_weights()

    add("transformers, float32", exact, exact.reference)
    add("transformers, bfloat16", rounded, rounded.reference)
    add("llama_torch, bfloat16", rounded, LlamaTorchRunner(rounded.reference))
    if kernel_library() is not None:
        add("llama_cpu, float32", exact, LlamaCpuRunner(exact.reference))
        add("llama_cpu, bfloat16", rounded, LlamaCpuRunner(rounded.reference))
        add("int8", rounded, LlamaInt8Runner(rounded.reference))
    print(f"{len(parts) * options.window} tokens of {name}, adapter {options.adapter}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
