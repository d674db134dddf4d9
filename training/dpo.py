"""Direct preference optimisation: what people chose becomes likelier than what they refused.

Reads as a diff of sft.py. The reference is the adapter as SFT left it (arXiv:2305.18290).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, DPOTrainer

from chatbot.model.base import encode_answer
from training.callbacks import Tokens, TrainingError, Watch
from training.recipe import DPO, TOO_LONG, Recipe, trl_config

Row = Mapping[str, Any]


def config(recipe: Recipe, out: Path, *, half: bool = False) -> DPOConfig:
    """The house's defaults, then ``[training.dpo]``; `half` for a base in bfloat16."""
    defaults = DPO | {"bf16": half}
    job = {"output_dir": str(out), "seed": recipe.seed, "use_cpu": not torch.cuda.is_available()}
    return trl_config(DPOConfig, "dpo", defaults, recipe.dpo, **job)


def encode(tokenizer: PreTrainedTokenizerBase, row: Row, side: str) -> Tokens:
    """The row's prompt and its "chosen" or "rejected" answer as token ids, those of serving."""
    return encode_answer(tokenizer, row["prompt"], row[side][0]["content"])


class Trainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer that takes rows encoded already, as SFTTrainer does."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    args: DPOConfig,
    watch: Watch,
) -> dict[str, Any]:
    """Train the model's adapter on the pairs, in place; the metrics of the run."""
    pairs = encoded(tokenizer, rows, args.max_length)
    if not pairs:
        raise TrainingError(TOO_LONG.format(args.max_length, "dpo"))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    trainer.end()
    model.delete_adapter("ref")
    check_start(watch.first, args)
    return {
        "rows": len(pairs),
        "too_long": len(rows) - len(pairs),
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0, 2),
        "first_loss": watch.first["loss"],
        "last_loss": watch.last["loss"],
        "first_margin": watch.first["rewards/margins"],
        "last_margin": watch.last["rewards/margins"],
        "last_accuracy": watch.last["rewards/accuracies"],
        "stopped": watch.stopped,
    }


def check_start(first: Mapping[str, float], args: DPOConfig, tolerance: float = 0.05) -> None:
    """At step 0 policy and reference are one: margin 0, and for the plain loss ln 2.

    Raises TrainingError otherwise: a reference wired wrongly trains without complaint.
    """
    margin, loss = first["rewards/margins"], first["loss"]
    plain = args.loss_type == ["sigmoid"] and not args.label_smoothing
    if abs(margin) > tolerance or (plain and abs(loss - math.log(2)) > tolerance):
        raise TrainingError(
            f"dpo: at step 0 the margin is {margin:.4f} and the loss {loss:.4f}, not 0 and ln 2: "
            "the reference is not the model that training began with. Report this as a bug."
        )


def encoded(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int | None
) -> list[dict[str, list[int]]]:
    """Encoded here and not by TRL, so that what is trained is what is served; long rows are out."""
    found = []
    for row in rows:
        prompt, chosen = encode(tokenizer, row, "chosen")
        _, rejected = encode(tokenizer, row, "rejected")
        if not max_length or len(prompt) + max(len(chosen), len(rejected)) <= max_length:
            ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            found.append(ids)
    return found
