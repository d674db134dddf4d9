"""Measures a step of training, SFT and DPO, against a bare PEFT loop in the same run.

    python -m tests.bench.bench_training                       # SmolLM2-135M-Instruct, two threads
    python -m tests.bench.bench_training --threads 1 --steps 8

Rows, batches and their order, threads, objective and optimizer are the same. The loop is what one
would write by hand: PEFT's layers, transformers' own attention, the head over the answers' tokens
only. It runs with adapters in float32 under bfloat16 autocast and with all in bfloat16; the faster
one is the baseline. The whole command is training from its start to its end, less loading.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from chatbot.model import lora
from chatbot.model.base import Base, load_base
from tests.bench.bench_learning import draw_cases, to_pair, to_row
from tests.fixtures.real_model import find_real_model
from training import dpo, sft
from training.callbacks import TimeBudget, TrainingMonitor
from training.fused_layers import fused_layers
from training.recipe import Recipe

WARM_UP = 2
"""Steps that do not count: memory and kernels are made."""
Row = tuple[list[int], int]
"""The token ids of a prompt with its answer, and how many of them the prompt has."""


@dataclass
class Run:
    """Holds what one way of training took."""

    step: float
    """Median seconds of a step."""
    whole: float
    loss: float


class TimedMonitor(TrainingMonitor):
    """Times the trainer's steps, and ends after so many."""

    def __init__(self, stage: str, steps: int) -> None:
        super().__init__(stage, TimeBudget(0), lambda line: None)
        self.steps, self.seconds, self.began = steps, list[float](), 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin a step."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a step."""
        self.seconds.append(time.perf_counter() - self.began)
        control.should_training_stop = state.global_step >= self.steps


def run_product(base: Base, rows: Sequence[Any], recipe: Recipe, stage: str, steps: int) -> Run:
    """Train by the product's trainer."""
    monitor = TimedMonitor(stage, steps)
    torch.manual_seed(0)
    model = get_peft_model(base.model, lora.lora_config(base))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, fused_layers(model):
        if stage == "sft":
            args = sft.build_config(recipe, Path(folder), bf16=True)
            sft.train(model, base.tokenizer, rows, [], args, monitor, recipe)
        else:
            pairs = dpo.build_config(recipe, Path(folder), bf16=True)
            dpo.train(model, base.tokenizer, rows, pairs, monitor)
    whole = time.perf_counter() - began
    model.unload()
    return Run(statistics.median(monitor.seconds[WARM_UP:]), whole, monitor.last_logs["loss"])


def run_bare(
    base: Base, batches: Sequence[Sequence[Row]], *, autocast: bool, rate: float, pairs: bool
) -> Run:
    """Train by a loop of our own, on these batches; of pairs the chosen ones come first."""
    torch.manual_seed(0)
    config = lora.lora_config(base)
    model = get_peft_model(base.model, config, autocast_adapter_dtype=autocast)
    if not autocast:
        model.to(torch.bfloat16)
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    compute: Callable[[], Any] = (
        (lambda: torch.autocast("cpu", torch.bfloat16)) if autocast else nullcontext
    )
    seconds, loss, began = [], torch.zeros(()), time.perf_counter()
    for step, batch in enumerate(batches):
        started = time.perf_counter()
        warm = 1.0 if pairs else min(1.0, step / 5)
        optimizer.param_groups[0]["lr"] = rate * warm
        with compute():
            sums, counts = sum_logprobs(model, batch)
        if pairs:
            with torch.no_grad(), model.disable_adapter(), compute():
                reference, _ = sum_logprobs(model, batch)
            half = len(batch) // 2
            gains = sums - reference
            preference = -logsigmoid(0.1 * (gains[:half] - gains[half:])).mean()
            loss = preference - sums[:half].sum() / counts[:half].sum()
        else:
            loss = -sums.sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    whole = time.perf_counter() - began
    model.unload()
    return Run(statistics.median(seconds[WARM_UP:]), whole, float(loss.detach()))


def sum_logprobs(model: Any, batch: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each row's answer, and how many tokens it has."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.stack([pad(torch.tensor(ids), (0, width - len(ids))) for ids, _ in batch])
    lengths = torch.tensor([[len(ids)] for ids, _ in batch])
    starts = torch.tensor([[start] for _, start in batch])
    at = torch.arange(width)[None]
    inner = model.get_base_model()
    mask = (at < lengths).long()
    hidden = inner.model(input_ids=ids, attention_mask=mask, use_cache=False)
    learnt = (at >= starts) & (at < lengths)
    logits = inner.lm_head(hidden.last_hidden_state[:, :-1][learnt[:, 1:]])
    logprobs = torch.log_softmax(logits.float(), -1)
    chosen = logprobs.gather(-1, ids[learnt][:, None])[:, 0]
    counts = learnt.sum(-1)
    return torch.stack([part.sum() for part in chosen.split(counts.tolist())]), counts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", help="SmolLM2-135M-Instruct unless named")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as training does
    base = load_base(options.base or str(find_real_model()))
    cases, _ = draw_cases(0, phrasings=1)
    wrong = [cases[i - 1].expected for i in range(len(cases))]
    corrections = [to_row(case) for case in cases]
    pairs = [to_pair(*both) for both in zip(cases, wrong, strict=True)]
    table = Table("", "a step, s", "times as fast", "the whole, s", "last loss")
    for stage, rows in (("sft", corrections), ("dpo", pairs)):
        epochs = {"num_train_epochs": 99}
        in_turn = {"train_sampling_strategy": "sequential"}
        recipe = Recipe(sure=1, forms=0, sft=epochs, dpo=epochs | in_turn)
        batches = in_order(base, rows, stage, recipe, options.steps)
        rate = {"sft": 5e-4, "dpo": 5e-5}[stage]
        arms = {
            f"{stage}: bare loop, {kind}": run_bare(
                base, batches, autocast=autocast, rate=rate, pairs=stage == "dpo"
            )
            for kind, autocast in (("autocast", True), ("bfloat16", False))
        }
        fastest = min(arms.values(), key=lambda run: run.step)
        arms[f"{stage}: Talkback"] = run_product(base, rows, recipe, stage, options.steps)
        for name, run in arms.items():
            ratio = f"{fastest.step / run.step:.2f}"
            table.add_row(name, f"{run.step:.2f}", ratio, f"{run.whole:.1f}", f"{run.loss:.4f}")
    Console(width=100).print(table)


def in_order(
    base: Base, rows: Sequence[Any], stage: str, recipe: Recipe, steps: int
) -> list[list[Row]]:
    """Return the batches in the order in which the product's trainer takes them."""
    batches: list[list[Row]] = []
    with tempfile.TemporaryDirectory() as folder:
        if stage == "sft":
            args = sft.build_config(recipe, Path(folder))
            encoded = sft.encode_rows(base.tokenizer, rows, args.max_length)
            sampler = sft.build_sampler(encoded, [], [], args, recipe)
            split = [(row["input_ids"], row["labels"].count(sft.IGNORED)) for row in encoded]
            while len(batches) < steps:
                batches += _chunks([split[number] for number in sampler], 8)
            return batches[:steps]
        pairs = dpo.encode_rows(
            base.tokenizer, rows, dpo.build_config(recipe, Path(folder)).max_length
        )
    while len(batches) < steps:
        for chunk in _chunks(pairs, 8):
            sides = [
                (pair["prompt_ids"] + pair[side], len(pair["prompt_ids"]))
                for side in ("chosen_ids", "rejected_ids")
                for pair in chunk
            ]
            batches.append(sides)
    return batches[:steps]


def _chunks(rows: Sequence[Any], size: int) -> list[Any]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


if __name__ == "__main__":
    main()
