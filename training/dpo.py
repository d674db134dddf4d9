"""Runs direct preference optimisation (DPO): chosen answers become likelier than rejected ones.

Twin of sft.py: the two read as a diff of each other. The reference is the adapter as SFT left it
(arXiv:2305.18290). `train.py` runs both, and undoes this phase if fewer approved answers are
recalled after it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, DPOTrainer

from chatbot.model.chat_template import encode_answer
from chatbot.model.scoring import EncodedAnswer
from feedback.snapshot import Record
from training.callbacks import TrainingError, TrainingMonitor, min_token_probabilities
from training.recipe import ALL_ROWS_TOO_LONG, DPO_DEFAULTS, Recipe, trl_config


def build_config(recipe: Recipe, out: Path, *, bf16: bool = False) -> DPOConfig:
    """Build TRL's config: our defaults, then ``[training.dpo]``; `bf16` for a base in bfloat16."""
    defaults = DPO_DEFAULTS | {"bf16": bf16}
    job = {
        "output_dir": str(out),
        "seed": recipe.seed,
        "use_cpu": not torch.cuda.is_available(),
        # In bfloat16 an answer's sum differs from batch to batch, by up to a nat: the reference
        # takes the very batches of the policy, which costs an epoch no more than ahead of it.
        "precompute_ref_log_probs": False,
    }
    return trl_config(DPOConfig, "dpo", defaults, recipe.dpo, **job)


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Record, side: str) -> EncodedAnswer:
    """Return the row's prompt and its "chosen" or "rejected" answer as token ids, as served."""
    answer = row[side][0]["content"]
    return encode_answer(tokenizer, row["prompt"], answer, thought=row.get("thought"))


class EncodedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """Extends DPOTrainer to take rows encoded already, as SFTTrainer does."""

    # DPOTrainer would render and tokenize the texts once more, its own way.
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Record],
    args: DPOConfig,
    monitor: TrainingMonitor,
) -> dict[str, Any]:
    """Train the model's adapter on the pairs, in place; return the metrics of the run.

    Raises TrainingError when every pair is longer than max_length, at a loss that is not finite,
    and for a reference that is not what training began with.
    """
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
    try:
        result = trainer.train()
        check_initial_margin(monitor.first_logs, args)
    finally:
        trainer.end()
        model.delete_adapter("ref")
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


def leave_out_learnt(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Record],
    max_length: int | None,
    sure: float,
) -> list[Record]:
    """Return the pairs in whose chosen answer some token has less than the probability `sure`.

    Of the others there is nothing to learn: DPO would push what was rejected, mostly the base's own
    words, further down, and the model away from its base (docs/learning.md). A pair longer than
    `max_length` is not looked at, and stays.
    """
    chosen = [encode_row(tokenizer, row, "chosen") for row in rows]
    short = [
        i for i, ids in enumerate(chosen) if not max_length or len(ids[0] + ids[1]) <= max_length
    ]
    found = min_token_probabilities(model, [chosen[i] for i in short], tokenizer.pad_token_id)
    learnt = {i for i, probability in zip(short, found, strict=True) if probability >= sure}
    return [row for i, row in enumerate(rows) if i not in learnt]


def check_initial_margin(
    first_logs: Mapping[str, float], args: DPOConfig, tolerance: float = 1e-3
) -> None:
    """Check that policy and reference are one at step 0: margin 0, and a sigmoid loss of ln 2.

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
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Record], max_length: int | None
) -> list[dict[str, list[int]]]:
    """Encode the pairs for DPOTrainer: prompt_ids, chosen_ids and rejected_ids.

    Encoded here and not by TRL, so that what is trained is what is served. Pairs longer than
    max_length are left out.
    """
    found = []
    for row in rows:
        prompt, chosen = encode_row(tokenizer, row, "chosen")
        _, rejected = encode_row(tokenizer, row, "rejected")
        if not max_length or len(prompt) + max(len(chosen), len(rejected)) <= max_length:
            ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            found.append(ids)
    return found
