"""Extends TRL's SFT by replay, so that what the base can do is not forgotten."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import kl_div
from trl import SFTTrainer

from chatbot.model.scoring import logprobs_before
from training.replay_sampler import ReplaySampler

IGNORED = -100
"""The label of a token that is not learnt."""


class ReplaySFTTrainer(SFTTrainer):  # type: ignore[misc]
    """Extends SFTTrainer to show other replay rows in each epoch.

    Of rows that are marked ``by_base`` the base's probabilities are learnt at every token of the
    answer, not its words alone (distillation, Hinton et al. 2015): the loss there is the KL
    divergence of the base's probabilities from the adapter's. So a hundred short answers keep what
    the base would say to other prompts too, and one that is cut short teaches no wrong end.
    """

    def __init__(self, *args: Any, sampler: ReplaySampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        collate: Any = self.data_collator
        self.data_collator: Any = lambda rows: {
            **collate(rows),
            "by_base": torch.tensor([row["by_base"] for row in rows]),
        }

    # TRL has no argument for a sampler; transformers' Trainer asks this method for one.
    def _get_train_sampler(self, _: Dataset | None = None) -> ReplaySampler:
        return self.sampler

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "by_base" not in self._signature_columns:
            self._signature_columns.append("by_base")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the loss of the rows that people wrote, a token's mean, plus the mean divergence
        of the base's own: a few short corrections count as much as all that is replayed.

        Both kinds go through the model together, and its head sees the answers alone.
        """
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        learnt = labels != IGNORED
        distilled = learnt & inputs["by_base"][:, None]
        logprobs = logprobs_before(model, learnt, ids, mask)
        is_distilled = distilled[learnt]
        loss = logprobs.new_zeros(())
        if not is_distilled.all():
            written = logprobs[~is_distilled]
            loss = loss + self._written_loss(written, labels[learnt & ~distilled])
        if is_distilled.any():
            expected = self._base_logprobs(model, distilled, ids, mask)
            found = logprobs[is_distilled]
            loss = loss + kl_div(found, expected, reduction="batchmean", log_target=True)
        # Given how many tokens there are in all its batches, the trainer leaves the mean to us.
        return loss / (
            1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        )

    def _written_loss(self, logprobs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of the labels, of the kind that ``[training.sft]`` names."""
        losses = -logprobs.gather(-1, labels[:, None])[:, 0]
        if self.args.loss_type == "dft":  # Wu et al. 2025, as in TRL
            losses = losses * losses.neg().exp().detach()
        smoothing = self.args.label_smoothing_factor
        if smoothing:
            losses = (1 - smoothing) * losses - smoothing * logprobs.mean(-1)
        return losses.mean()

    def _base_logprobs(self, model: Any, chosen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return what the base itself finds of the chosen tokens, which are those of some rows."""
        rows = chosen.any(-1)
        width = int(mask[rows].sum(-1).max())  # without the columns in which all of them are padded
        shown = (values[rows, :width] for values in (chosen, ids, mask))
        model.eval()  # the base speaks without dropout
        with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
            found = logprobs_before(model, *shown)
        model.train()
        return found
