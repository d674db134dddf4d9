"""Supervised fine-tuning: the model learns to give exactly the approved answers.

Reads as a diff of dpo.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from chatbot.model.base import encode_answer
from training.callbacks import Learnt, Tokens, TrainingError, Watch
from training.recipe import SFT, TOO_LONG, Recipe, trl_config
from training.replay_sampler import Turns

Row = Mapping[str, Any]


def config(recipe: Recipe, out: Path, *, half: bool = False) -> SFTConfig:
    """The house's defaults, then ``[training.sft]``; `half` for a base in bfloat16."""
    defaults = SFT | {"bf16": half}
    job = {"output_dir": str(out), "seed": recipe.seed, "use_cpu": not torch.cuda.is_available()}
    return trl_config(SFTConfig, "sft", defaults, recipe.sft, **job)


def encode(tokenizer: PreTrainedTokenizerBase, row: Row) -> Tokens:
    """The row's prompt and answer as token ids, the very ones of serving."""
    return encode_answer(tokenizer, row["prompt"], row["completion"][0]["content"])


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that shows the replay rows in turns."""

    turns: Turns

    def _get_train_sampler(self, _: Dataset | None = None) -> Turns:
        return self.turns


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    replay: Sequence[Row],
    args: SFTConfig,
    watch: Watch,
    recipe: Recipe,
) -> dict[str, Any]:
    """Train the model's adapter on the rows, in place; the metrics of the run."""
    new = encoded(tokenizer, rows, args.max_length)
    kept = encoded(tokenizer, replay, args.max_length)
    if not new:
        raise TrainingError(TOO_LONG.format(args.max_length, "sft"))
    known = [split(row) for row in new]
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([*new, *kept]),
        processing_class=tokenizer,
        callbacks=[watch, Learnt(model, known, recipe.sure, tokenizer.pad_token_id)],
    )
    trainer.turns = Turns(len(new), len(kept), recipe.replay_rows(len(new)), recipe.seed)
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    trainer.end()
    return {
        "rows": len(new),
        "too_long": len(rows) - len(new),
        "replay": trainer.turns.take,
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0, 2),
        "first_loss": watch.first["loss"],
        "last_loss": watch.last["loss"],
        "stopped": watch.stopped,
    }


def encoded(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int | None
) -> list[dict[str, list[int]]]:
    """Encoded here and not by TRL, so that what is trained is what is served; long rows are out."""
    found = []
    for row in rows:
        prompt, answer = encode(tokenizer, row)
        if not max_length or len(prompt) + len(answer) <= max_length:
            labels = [-100] * len(prompt) + answer
            found.append({"input_ids": prompt + answer, "labels": labels})
    return found


def split(row: Mapping[str, list[int]]) -> Tokens:
    """An encoded row as prompt and answer again."""
    length = row["labels"].count(-100)
    return row["input_ids"][:length], row["input_ids"][length:]
