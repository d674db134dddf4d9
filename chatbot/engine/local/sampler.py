"""Samples the next token from logits, in the order of transformers' own logits processors.

Each stream draws from a generator of its own: what else is in the batch does not change its text.
`sequence.py` decides which tokens of a draft are accepted, one by one as they are sampled.
"""

import math
from collections import Counter

import numpy as np
import torch

from chatbot.engine.protocol import Sampling
from chatbot.engine.stream import TokenLogprob

TOP_P_CANDIDATES = 1024
"""Top-p looks at so many best tokens first; a full sort of the vocabulary costs milliseconds."""

MIN_LOGPROB = -9999.0
"""The log probability that is reported for an impossible token; JSON knows no infinity."""


def argmax_tokens(logits: torch.Tensor) -> tuple[list[bool], list[int]]:
    """Return whether each row of logits [rows, vocabulary] has a finite maximum, and its token.

    NaN counts as a maximum. On a CPU numpy finds it in a sixth of torch's time or less.
    """
    if logits.device.type != "cpu":
        values, ids = logits.max(-1)
        return values.isfinite().tolist(), ids.tolist()
    scores = logits.float().numpy()
    best = scores.argmax(-1)
    return np.isfinite(scores[np.arange(len(best)), best]).tolist(), best.tolist()


def token_logprob(logits: torch.Tensor, token: int, num_top: int) -> TokenLogprob:
    """Return the log probability of `token` and of the `num_top` likeliest, by the raw logits
    [vocabulary]: before temperature, penalties and truncation."""
    logprobs = logits.float().log_softmax(-1).clamp(min=MIN_LOGPROB)
    values, ids = logprobs.topk(min(num_top, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)


class Penalties:
    """Applies logit bias, frequency and presence penalty to the logits of one stream.

    logit[token] += bias[token] - frequency_penalty * count[token] - presence_penalty * (count > 0)

    Counts are of the answer's tokens. Source: OpenAI's API reference, "Frequency and presence
    penalties".
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._counts_tokens = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._token_counts: Counter[int] = Counter()

    @property
    def is_empty(self) -> bool:
        """Tell whether the logits always stay as they are."""
        return not (self._counts_tokens or self._sampling.logit_bias)

    def apply(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the changed logits [vocabulary]; tokens beyond the vocabulary are ignored."""
        changes = dict(self._sampling.logit_bias)
        for token, count in self._token_counts.items():
            penalty = self._sampling.frequency_penalty * count + self._sampling.presence_penalty
            changes[token] = changes.get(token, 0.0) - penalty
        known = {token: change for token, change in changes.items() if 0 <= token < len(scores)}
        if not known:
            return scores
        tokens = torch.tensor(list(known), device=scores.device)
        return scores.index_add(0, tokens, scores.new_tensor(list(known.values())))

    def count_token(self, token: int) -> None:
        """Count one more token of the answer."""
        if self._counts_tokens:
            self._token_counts[token] += 1


class Sampler:
    """Samples the tokens of one stream."""

    def __init__(self, sampling: Sampling, prompt_ids: list[int]) -> None:
        self._sampling = sampling
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1 else set()
        self._generator: torch.Generator | None = None
        self._penalties = Penalties(sampling)

    @property
    def takes_argmax(self) -> bool:
        """Tell whether the token is always the argmax of the raw logits.

        One call of `argmax_tokens` then serves a whole batch.
        """
        unpenalised = self._sampling.repetition_penalty == 1 and self._penalties.is_empty
        return self._sampling.temperature == 0 and unpenalised

    def sample(self, logits: torch.Tensor) -> int:
        """Return the next token by the logits [vocabulary], and count it for the penalties."""
        scores = self._penalties.apply(self._apply_repetition_penalty(logits.float()))
        if self._sampling.temperature == 0:
            token = int(scores.argmax())
        else:
            token = self._draw_token(scores / self._sampling.temperature)
        if self._sampling.repetition_penalty != 1:
            self._seen.add(token)
        self._penalties.count_token(token)
        return token

    def _apply_repetition_penalty(self, scores: torch.Tensor) -> torch.Tensor:
        penalty = self._sampling.repetition_penalty
        if penalty == 1:
            return scores
        seen = torch.tensor(sorted(self._seen), device=scores.device)
        value = scores[seen]
        return scores.index_put((seen,), torch.where(value < 0, value * penalty, value / penalty))

    def _draw_token(self, scores: torch.Tensor) -> int:
        scores, ids = self._truncate(scores)
        probabilities = scores.softmax(-1)
        generator = self._get_generator(scores.device)
        drawn = int(torch.multinomial(probabilities, 1, generator=generator))
        return drawn if ids is None else int(ids[drawn])

    def _truncate(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Apply top-k, top-p and min-p: return scores, -inf for tokens that are cut, and their ids.

        The ids are None where the scores are still those of the whole vocabulary.
        """
        ids, min_p = None, self._sampling.min_p
        if self._sampling.top_k or self._sampling.top_p < 1:
            scores, ids = self._top_k_top_p(scores)
        if min_p > 0:
            threshold = scores.max() + math.log(min_p)
            scores = scores.masked_fill(scores < threshold, -math.inf)
        return scores, ids

    def _top_k_top_p(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores and ids of the tokens within top-k and top-p, best first."""
        top_k, top_p, size = self._sampling.top_k, self._sampling.top_p, len(scores)
        best, ids = scores.topk(min(top_k or TOP_P_CANDIDATES, size))
        if top_p == 1:
            return best, ids
        # Top-p is of the distribution that top-k leaves, else of the whole vocabulary.
        total = (best if top_k else scores).logsumexp(-1)
        mass = (best - total).exp().cumsum(-1)
        if not top_k and mass[-1] < top_p:  # the candidates do not hold enough: sort all
            best, ids = scores.sort(descending=True)
            mass = (best - total).exp().cumsum(-1)
        keep = int((mass < top_p).sum()) + 1
        return best[:keep], ids[:keep]

    def _get_generator(self, device: torch.device) -> torch.Generator:
        """Return the stream's own generator, seeded once: by the request, else at random."""
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self._sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._sampling.seed)
        return self._generator
