"""What a request adds to the logits, and what a stream's own tokens take off, as OpenAI defines it.

logit[token] += bias[token] - frequency_penalty * times it came - presence_penalty * (it came)
"""

from collections import Counter

import torch

from chatbot.engine.protocol import Sampling


class Penalties:
    """The additive changes to the logits of one stream."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._counts_tokens = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._token_counts: Counter[int] = Counter()

    @property
    def is_empty(self) -> bool:
        """True if the logits stay as they are."""
        return not (self._counts_tokens or self._sampling.logit_bias)

    def apply(self, scores: torch.Tensor) -> torch.Tensor:
        """The changed logits [vocabulary]; tokens beyond the vocabulary have nothing to change."""
        changes = dict(self._sampling.logit_bias)
        for token, times in self._token_counts.items():
            off = self._sampling.frequency_penalty * times + self._sampling.presence_penalty
            changes[token] = changes.get(token, 0.0) - off
        here = {token: by for token, by in changes.items() if 0 <= token < len(scores)}
        if not here:
            return scores
        tokens = torch.tensor(list(here), device=scores.device)
        return scores.index_add(0, tokens, scores.new_tensor(list(here.values())))

    def count_token(self, token: int) -> None:
        """One more token of the answer."""
        if self._counts_tokens:
            self._token_counts[token] += 1
