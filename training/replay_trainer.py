"""Extends TRL's SFT by replay, so that what the base can do is not forgotten."""

from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import kl_div, log_softmax
from trl import SFTTrainer

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
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss of the rows that people wrote, a token's mean, plus the mean divergence
        of the base's own: a few short corrections count as much as all that is replayed."""
        by_base = inputs.pop("by_base")
        if not by_base.any():
            return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        loss = self._mean_divergence(model, **_select_rows(inputs, by_base))
        if not by_base.all():
            loss = loss + super().compute_loss(model, _select_rows(inputs, ~by_base))
        # Given how many tokens there are in all its batches, the trainer leaves the mean to us.
        return loss / (
            1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        )

    def _mean_divergence(self, model: Any, labels: torch.Tensor, **inputs: torch.Tensor) -> Any:
        """Return the KL divergence of the base's probabilities from the model's, in nats, a mean
        over the tokens that have a label."""
        learnt = labels[:, 1:] != IGNORED  # the logits at a position are about the token after it
        columns = learnt.any(0).nonzero()[:, 0]
        learnt = learnt[:, columns]

        def logprobs() -> torch.Tensor:
            logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
            return log_softmax(logits[learnt].float(), -1)

        model.eval()  # the base speaks without dropout
        with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
            base_logprobs = logprobs()
        model.train()
        return kl_div(logprobs(), base_logprobs, reduction="batchmean", log_target=True)


def _select_rows(inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return some rows of a batch, without the columns in which all of them are padded."""
    width = int(inputs["attention_mask"][chosen].sum(-1).max())
    return {name: values[chosen, :width] for name, values in inputs.items()}
