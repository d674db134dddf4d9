"""From logits to the next token, in the order of transformers' own logits processors.

Each stream draws from a generator of its own: what else is in the batch does not move its dice.
"""

import math

import numpy as np
import torch

from chatbot.engine.local.penalties import Penalties
from chatbot.engine.protocol import Sampling
from chatbot.engine.stream import TokenLogprob

TOP_P_CANDIDATES = 1024
"""Top-p looks at so many best tokens first; a full sort of the vocabulary costs milliseconds."""

MIN_LOGPROB = -9999.0
"""The log probability that is told of what cannot come; JSON knows no infinity."""


def argmax_tokens(logits: torch.Tensor) -> tuple[list[bool], list[int]]:
    """Whether each row of logits [rows, vocabulary] has a best token, and which it is.

    In NaN and infinity there is none. On a CPU numpy finds it in a sixth of torch's time or less.
    """
    if logits.device.type != "cpu":
        top, at = logits.max(-1)
        return top.isfinite().tolist(), at.tolist()
    scores = logits.float().numpy()
    ids = scores.argmax(-1)
    return np.isfinite(scores[np.arange(len(ids)), ids]).tolist(), ids.tolist()


def token_logprob(logits: torch.Tensor, token: int, top: int) -> TokenLogprob:
    """How likely the model itself held `token` to be, by its raw logits [vocabulary]."""
    sure = logits.float().log_softmax(-1).clamp(min=MIN_LOGPROB)
    best, ids = sure.topk(min(top, len(sure)))
    return TokenLogprob(
        token, float(sure[token]), tuple(zip(ids.tolist(), best.tolist(), strict=True))
    )


class Sampler:
    """Chooses the tokens of one stream."""

    def __init__(self, sampling: Sampling, prompt_ids: list[int]) -> None:
        self._sampling = sampling
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1 else set()
        self._generator: torch.Generator | None = None
        self._penalties = Penalties(sampling)

    @property
    def takes_argmax(self) -> bool:
        """True if the best token is taken as it is, so that a batch can choose in one step."""
        still = self._sampling.repetition_penalty == 1 and self._penalties.is_empty
        return self._sampling.temperature == 0 and still

    def sample(self, logits: torch.Tensor) -> int:
        """The next token from the logits [vocabulary]."""
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
        chance = scores.softmax(-1)
        pick = int(torch.multinomial(chance, 1, generator=self._get_generator(scores.device)))
        return pick if ids is None else int(ids[pick])

    def _truncate(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scores that are left, -inf for others, and whose tokens they are if not all's."""
        ids, min_p = None, self._sampling.min_p
        if self._sampling.top_k or self._sampling.top_p < 1:
            scores, ids = self._top_k_top_p(scores)
        if min_p > 0:
            least = scores.max() + math.log(min_p)
            scores = scores.masked_fill(scores < least, -math.inf)
        return scores, ids

    def _top_k_top_p(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What top-k and top-p leave, best first."""
        top_k, top_p, size = self._sampling.top_k, self._sampling.top_p, len(scores)
        best, ids = scores.topk(min(top_k or TOP_P_CANDIDATES, size))
        if top_p == 1:
            return best, ids
        whole = (best if top_k else scores).logsumexp(-1)
        mass = (best - whole).exp().cumsum(-1)
        if not top_k and mass[-1] < top_p:
            best, ids = scores.sort(descending=True)
            mass = (best - whole).exp().cumsum(-1)
        keep = int((mass < top_p).sum()) + 1
        return best[:keep], ids[:keep]

    def _get_generator(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self._sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._sampling.seed)
        return self._generator
