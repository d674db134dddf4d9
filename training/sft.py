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

from chatbot.base import encode_answer
from training.recipe import SFT, Recipe, trl_config
from training.watch import Learnt, Tokens, TrainingError, Watch

Row = Mapping[str, Any]


def config(recipe: Recipe, out: Path, *, half: bool = False) -> SFTConfig:
    """The house's defaults, then ``[training.sft]``; `half` for a base in bfloat16."""
    defaults = SFT | {"bf16": half}
    job = {"output_dir": str(out), "seed": recipe.seed, "use_cpu": not torch.cuda.is_available()}
    return trl_config(SFTConfig, "sft", defaults, recipe.sft, **job)


def encode(tokenizer: PreTrainedTokenizerBase, row: Row) -> Tokens:
    """The row's prompt and answer as token ids, the very ones of serving."""
    return encode_answer(tokenizer, row["prompt"], row["completion"][0]["content"])


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    args: SFTConfig,
    watch: Watch,
    learnt: Learnt,
) -> dict[str, Any]:
    """Train the model's adapter on the rows, in place; the metrics of the run."""
    data = dataset(tokenizer, rows, args.max_length)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[watch, learnt],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    trainer.end()
    return {
        "rows": len(data),
        "too_long": len(rows) - len(data),
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0, 2),
        "first_loss": watch.first["loss"],
        "last_loss": watch.last["loss"],
        "stopped": watch.stopped,
    }


def dataset(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int | None
) -> Dataset:
    """Encoded here and not by TRL, so that what is trained is what is served."""
    encoded = []
    for row in rows:
        prompt, answer = encode(tokenizer, row)
        if max_length and len(prompt) + len(answer) > max_length:
            continue
        labels = [-100] * len(prompt) + answer
        encoded.append({"input_ids": prompt + answer, "labels": labels})
    if not encoded:
        raise TrainingError(
            f"no row is shorter than max_length ({max_length} tokens); raise it in [training.sft]"
        )
    return Dataset.from_list(encoded)
