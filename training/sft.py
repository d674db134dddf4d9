"""Runs supervised fine-tuning (SFT): the model learns to give exactly the approved answers.

Twin of dpo.py: the two read as a diff of each other.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig

from chatbot.model.chat_template import encode_answer
from chatbot.model.scoring import EncodedAnswer
from feedback.snapshot import Record
from training.callbacks import StopWhenLearnt, TrainingError, TrainingMonitor
from training.question_forms import form_rows
from training.recipe import (
    ALL_ROWS_TOO_LONG,
    SFT_BATCH_BY_BASE,
    SFT_DEFAULTS,
    Recipe,
    learning_rate,
    trl_config,
)
from training.replay_sampler import Pool, ReplaySampler
from training.replay_trainer import IGNORED, ReplaySFTTrainer


def build_config(
    recipe: Recipe,
    out: Path,
    *,
    bf16: bool = False,
    by_base: bool = False,
    parameters: int = 0,
) -> SFTConfig:
    """Build TRL's config: our defaults, then ``[training.sft]``; `bf16` for a base in bfloat16,
    `by_base` where what is replayed are its own answers, `parameters` is how many it has."""
    defaults = SFT_DEFAULTS | {"bf16": bf16, "learning_rate": learning_rate(parameters)}
    if by_base:
        defaults["per_device_train_batch_size"] = SFT_BATCH_BY_BASE
    job = {"output_dir": str(out), "seed": recipe.seed, "use_cpu": not torch.cuda.is_available()}
    return trl_config(SFTConfig, "sft", defaults, recipe.sft, **job)


def replays_base(replay: Sequence[Record]) -> bool:
    """Tell whether what is replayed are the base's own answers."""
    return any(row.get("by_base") for row in replay)


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Record) -> EncodedAnswer:
    """Return the row's prompt and answer as token ids, the very ones of serving."""
    answer = row["completion"][0]["content"]
    return encode_answer(tokenizer, row["prompt"], answer, thought=row.get("thought"))


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Record],
    replay: Sequence[Record],
    args: SFTConfig,
    monitor: TrainingMonitor,
    recipe: Recipe,
) -> dict[str, Any]:
    """Train the model's adapter on the rows, in place; return the metrics of the run.

    Raises TrainingError when every row is longer than max_length.
    """
    new = encode_rows(tokenizer, rows, args.max_length)
    if not new:
        raise TrainingError(ALL_ROWS_TOO_LONG.format(args.max_length, "sft"))
    known = [split_row(row) for row in new]
    kept = encode_rows(tokenizer, replay, args.max_length)
    by_base = replays_base(kept)
    num_forms = recipe.forms_per_epoch(len(new), by_base=by_base)
    forms = encode_rows(tokenizer, form_rows(rows) if num_forms else [], args.max_length)
    sampler = build_sampler(new, forms, kept, args, recipe, by_base=by_base)
    trainer = ReplaySFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([*new, *forms, *kept]),
        processing_class=tokenizer,
        callbacks=[monitor, StopWhenLearnt(model, known, recipe.sure, tokenizer.pad_token_id)],
        sampler=sampler,
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    trainer.end()
    return {
        "rows": len(new),
        "too_long": len(rows) - len(new),
        "replay": sampler.pools[1].per_epoch,
        "forms": sampler.pools[0].per_epoch,
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0, 2),
        "first_loss": monitor.first_logs["loss"],
        "last_loss": monitor.last_logs["loss"],
        "stopped": monitor.stop_reason,
    }


def build_sampler(
    new: Sequence[Record],
    forms: Sequence[Record],
    kept: Sequence[Record],
    args: SFTConfig,
    recipe: Recipe,
    *,
    by_base: bool = False,
) -> ReplaySampler:
    """Return what orders the encoded rows, numbered in this order: new ones, forms, replay;
    `by_base`: the replay rows are the base's own answers."""
    lengths = [len(row["input_ids"]) for row in (*new, *forms, *kept)]
    form_numbers = list(range(len(new), len(new) + len(forms)))
    kept_numbers = list(range(len(new) + len(forms), len(lengths)))
    random.Random(recipe.seed).shuffle(kept_numbers)
    pools = [
        Pool(form_numbers, recipe.forms_per_epoch(len(new), by_base=by_base)),
        Pool(kept_numbers, recipe.replay_rows_per_epoch(len(new), by_base=by_base)),
    ]
    return ReplaySampler(len(new), pools, lengths, args.per_device_train_batch_size, recipe.seed)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Record], max_length: int | None
) -> list[dict[str, Any]]:
    """Encode the rows for SFTTrainer: input_ids, labels of -100 over the prompt, and by_base.

    Encoded here and not by TRL, so that what is trained is what is served. Rows longer than
    max_length are left out: cut short, they would teach an answer without its end.
    """
    found = []
    for row in rows:
        prompt, answer = encode_row(tokenizer, row)
        if not max_length or len(prompt) + len(answer) <= max_length:
            labels = [IGNORED] * len(prompt) + answer
            by_base = bool(row.get("by_base"))
            found.append({"input_ids": prompt + answer, "labels": labels, "by_base": by_base})
    return found


def split_row(row: Mapping[str, Any]) -> EncodedAnswer:
    """Split an encoded row into the ids of its prompt and of its answer."""
    length = row["labels"].count(IGNORED)
    return row["input_ids"][:length], row["input_ids"][length:]
