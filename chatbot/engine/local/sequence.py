"""Holds one running stream: its request, its sampler and how much of it the model has computed."""

from collections import deque
from dataclasses import dataclass, field

import torch

from chatbot.engine.local.prompt_lookup import PromptLookup
from chatbot.engine.local.sampler import Sampler, token_logprob
from chatbot.engine.protocol import BASE, Request
from chatbot.engine.stream import FinishReason, Stream
from chatbot.engine.text.detokenizer import Detokenizer, Piece


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
    room: int
    """Most tokens of thought and answer together."""
    thought_budget: int = 0
    """Most tokens of the thought; then the closing mark is put in, and the answer begins."""
    closing_ids: list[int] = field(default_factory=list)
    """The tokens of that mark."""
    num_computed_tokens: int = 0
    """Tokens of prompt and answer whose keys and values are in the cache."""
    lookup: PromptLookup = field(default_factory=PromptLookup)
    _closing: deque[int] = field(default_factory=deque)
    """The tokens of the closing mark that are yet to be put in."""

    @property
    def adapter(self) -> str | None:
        """Return the adapter that the model runner applies; None for the base."""
        return None if self.request.adapter == BASE else self.request.adapter

    @property
    def computed_ids(self) -> list[int]:
        """Return the tokens whose keys and values are in the cache."""
        return [*self.request.prompt_ids, *self.stream.ids][: self.num_computed_tokens]

    @property
    def tokens_left(self) -> int:
        """Return how many more tokens there may be, of an answer that has begun or might have."""
        generated = len(self.stream.ids)
        thought = {
            "thought": generated,
            "start": min(generated, self.thought_budget),
            "answer": self.detokenizer.thought_tokens,
        }[self.detokenizer.phase]
        answer_left = self.request.sampling.max_tokens - (generated - thought)
        return min(answer_left, self.room - generated)

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

        They leave room for one more token, the one that verifying them yields.
        """
        ids = [*self.request.prompt_ids, *self.stream.ids]
        self.lookup.extend(ids[len(self.lookup) :])
        return self.lookup.propose(min(max_draft, self.tokens_left - 1))

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
            token = self.choose(output, index, end_token_ids)
            sampled += 1
            finish = self.append_token(token, end_token_ids)
            if finish is not None or token != drafted:
                break
            accepted += 1
            self.num_computed_tokens += 1
        if draft:
            self.lookup.record_accepted(accepted)
        return VerifiedDraft(sampled, accepted, finish)

    def choose(self, output: StepOutput, index: int, end_token_ids: frozenset[int]) -> int:
        """Choose the next token by the logits at `index`; note its log probability if asked to.

        A thought ends by its closing mark alone: at the end of its budget, or where the model would
        end its turn, the mark is put in, for the answer is yet to come.
        """
        thinking = self.detokenizer.phase == "thought"
        if thinking and len(self.stream.ids) >= self.thought_budget:
            self._closing.extend(self.closing_ids)
        token = self._closing[0] if self._closing else self._sample(output, index)
        if thinking and not self._closing and token in end_token_ids:
            self._closing.extend(self.closing_ids)
            token = self._closing[0]
        if (count := self.request.sampling.logprobs) is not None:
            self.stream.logprobs.append(token_logprob(output.logits[index], token, count))
        return token

    def _sample(self, output: StepOutput, index: int) -> int:
        if self.sampler.takes_argmax:
            return output.argmax[index]
        return self.sampler.sample(output.logits[index])

    def append_token(self, token: int, end_token_ids: frozenset[int]) -> FinishReason | None:
        """Send a token's text to the stream; return why the answer ends with it, None if not."""
        if self._closing:
            self.detokenizer.add_closing(self._closing.popleft())
            piece = Piece("")
        elif token in end_token_ids:
            piece = self.detokenizer.flush()._replace(stopped=True)
        else:
            piece = self.detokenizer.add(token)
        self.stream.thought_tokens = self.detokenizer.thought_tokens
        self.stream.append_token(token, piece.text, piece.thought)
        if not piece.stopped and self.tokens_left <= 0:
            text, stopped, _ = self.detokenizer.flush()
            self.stream.append_text(text)
            return "stop" if stopped else "length"
        return "stop" if piece.stopped else None
