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
from training.callbacks import EncodedAnswer, TrainingError, TrainingMonitor
from training.recipe import ALL_ROWS_TOO_LONG, DPO_DEFAULTS, Recipe, trl_config

Row = Mapping[str, Any]


def build_config(recipe: Recipe, out: Path, *, bf16: bool = False) -> DPOConfig:
    """The house's defaults, then ``[training.dpo]``; `half` for a base in bfloat16."""
    defaults = DPO_DEFAULTS | {"bf16": bf16}
    job = {"output_dir": str(out), "seed": recipe.seed, "use_cpu": not torch.cuda.is_available()}
    return trl_config(DPOConfig, "dpo", defaults, recipe.dpo, **job)


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Row, side: str) -> EncodedAnswer:
    """The row's prompt and its "chosen" or "rejected" answer as token ids, those of serving."""
    return encode_answer(tokenizer, row["prompt"], row[side][0]["content"])


class EncodedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer that takes rows encoded already, as SFTTrainer does."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    args: DPOConfig,
    monitor: TrainingMonitor,
) -> dict[str, Any]:
    """Train the model's adapter on the pairs, in place; the metrics of the run."""
    pairs = encode_rows(tokenizer, rows, args.max_length)
    if not pairs:
        raise TrainingError(ALL_ROWS_TOO_LONG.format(args.max_length, "dpo"))
    trainer = EncodedDPOTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[monitor],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    trainer.end()
    model.delete_adapter("ref")
    check_initial_margin(monitor.first_logs, args)
    return {
        "rows": len(pairs),
        "too_long": len(rows) - len(pairs),
        "steps": result.global_step,
        "epochs": round(trainer.state.epoch or 0, 2),
        "first_loss": monitor.first_logs["loss"],
        "last_loss": monitor.last_logs["loss"],
        "first_margin": monitor.first_logs["rewards/margins"],
        "last_margin": monitor.last_logs["rewards/margins"],
        "last_accuracy": monitor.last_logs["rewards/accuracies"],
        "stopped": monitor.stop_reason,
    }


def check_initial_margin(
    first_logs: Mapping[str, float], args: DPOConfig, tolerance: float = 0.05
) -> None:
    """At step 0 policy and reference are one: margin 0, and for the plain loss ln 2.

    Raises TrainingError otherwise: a reference wired wrongly trains without complaint.
    """
    margin, loss = first_logs["rewards/margins"], first_logs["loss"]
    sigmoid_only = args.loss_type == ["sigmoid"] and not args.label_smoothing
    if abs(margin) > tolerance or (sigmoid_only and abs(loss - math.log(2)) > tolerance):
        raise TrainingError(
            f"dpo: at step 0 the margin is {margin:.4f} and the loss {loss:.4f}, not 0 and ln 2: "
            "the reference is not the model that training began with. Report this as a bug."
        )


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int | None
) -> list[dict[str, list[int]]]:
    """Encoded here and not by TRL, so that what is trained is what is served; long rows are out."""
    found = []
    for row in rows:
        prompt, chosen = encode_row(tokenizer, row, "chosen")
        _, rejected = encode_row(tokenizer, row, "rejected")
        if not max_length or len(prompt) + max(len(chosen), len(rejected)) <= max_length:
            ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            found.append(ids)
    return found
