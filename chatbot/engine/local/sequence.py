"""Holds one running stream: its request, its sampler and how much of it the model has computed."""

from dataclasses import dataclass, field

import torch

from chatbot.engine.local.detokenizer import Detokenizer
from chatbot.engine.local.prompt_lookup import PromptLookup
from chatbot.engine.local.sampler import Sampler, token_logprob
from chatbot.engine.protocol import BASE, Request
from chatbot.engine.stream import FinishReason, Stream


@dataclass(frozen=True)
class StepOutput:
    """Holds what one forward gives: a row of logits for every token that asked for one."""

    logits: torch.Tensor
    """[num_logits, vocabulary]."""
    finite: list[bool]
    """Whether a row of logits has a finite maximum; one with NaN or infinity has none."""
    argmax: list[int]
    """The most likely token of each row of logits."""


@dataclass(frozen=True)
class VerifiedDraft:
    """Holds what verifying a draft gave."""

    num_sampled: int
    """Tokens of the answer that were sampled in this step."""
    num_accepted: int
    """How many of them the draft had right: they took no step of their own."""
    finish: FinishReason | None
    """Why the answer ends with them; "error" for logits that are not finite, None if it goes on."""


@dataclass
class Sequence:
    """Holds a stream and its state; while it runs, its index among the running is its cache row."""

    request: Request
    stream: Stream
    sampler: Sampler
    detokenizer: Detokenizer
    max_tokens: int
    """Most tokens of the answer."""
    num_computed_tokens: int = 0
    """Tokens of prompt and answer whose keys and values are in the cache."""
    lookup: PromptLookup = field(default_factory=PromptLookup)

    @property
    def adapter(self) -> str | None:
        """Return the adapter that the model runner applies; None for the base."""
        return None if self.request.adapter == BASE else self.request.adapter

    @property
    def computed_ids(self) -> list[int]:
        """Return the tokens whose keys and values are in the cache."""
        return [*self.request.prompt_ids, *self.stream.ids][: self.num_computed_tokens]

    @property
    def is_prefilled(self) -> bool:
        """Tell whether the whole prompt is computed, so that the next step decodes."""
        return self.num_computed_tokens >= len(self.request.prompt_ids)

    def next_prompt_ids(self, token_budget: int) -> list[int]:
        """Return the next tokens of the prompt to compute, at most `token_budget`."""
        start = self.num_computed_tokens
        return self.request.prompt_ids[start : start + token_budget]

    def propose_draft(self, max_draft: int) -> list[int]:
        """Return up to `max_draft` tokens that may follow the last one, by prompt lookup.

        They leave room for one more within `max_tokens`: the token that verifying them yields.
        """
        ids = [*self.request.prompt_ids, *self.stream.ids]
        self.lookup.extend(ids[len(self.lookup) :])
        return self.lookup.propose(min(max_draft, self.max_tokens - len(self.stream.ids) - 1))

    def verify(
        self, output: StepOutput, first: int, draft: list[int], end_token_ids: frozenset[int]
    ) -> VerifiedDraft:
        """Sample and send the next token by the logits `first`, and on while the draft is right.

        Each token is sampled as without a draft. Where it equals the drafted one, the next logits
        hold as well: the token that they were computed from is the one that was sampled.
        """
        sampled = accepted = 0
        finish: FinishReason | None = None
        for index, drafted in enumerate([*draft, None], first):
            if not output.finite[index]:
                finish = "error"
                break
            token = self.sample(output, index)
            sampled += 1
            finish = self.append_token(token, end_token_ids)
            if finish is not None or token != drafted:
                break
            accepted += 1
            self.num_computed_tokens += 1
        if draft:
            self.lookup.record_accepted(accepted)
        return VerifiedDraft(sampled, accepted, finish)

    def sample(self, output: StepOutput, index: int) -> int:
        """Choose the next token by the logits at `index`; note its log probability if asked to."""
        logits = output.logits[index]
        token = output.argmax[index] if self.sampler.takes_argmax else self.sampler.sample(logits)
        if (count := self.request.sampling.logprobs) is not None:
            self.stream.logprobs.append(token_logprob(logits, token, count))
        return token

    def append_token(self, token: int, end_token_ids: frozenset[int]) -> FinishReason | None:
        """Send a token's text to the stream; return why the answer ends with it, None if not."""
        if token in end_token_ids:
            self.stream.append_token(token, self.detokenizer.flush()[0])
            return "stop"
        text, stopped = self.detokenizer.add(token)
        self.stream.append_token(token, text)
        if not stopped and len(self.stream.ids) >= self.max_tokens:
            text, stopped = self.detokenizer.flush()
            self.stream.append_text(text)
            return "stop" if stopped else "length"
        return "stop" if stopped else None
