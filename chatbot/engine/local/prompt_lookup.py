"""Proposes draft tokens for speculative decoding by looking them up in the text so far.

An answer that repeats an approved one word for word is in the prompt. The model verifies a draft of
several tokens in one step, hardly longer than for one, and every token of it that it would have
chosen itself is accepted (`Sequence.verify`): the text is the same as without drafts, only sooner.

Source: Saxena, "Prompt Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding
"""

from collections.abc import Iterable

NGRAM_SIZE = 2
"""Tokens that must have occurred together before. After a single one drafts are mostly wrong."""

MAX_SPECULATING = 4
"""With more running sequences none has a draft: they fill the step with tokens that are needed."""


class PromptLookup:
    """Holds the tokens of one stream, and where each n-gram of them last continued."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._continuations: dict[tuple[int, ...], int] = {}
        """n-gram -> index of the token after its last occurrence."""
        self._max_draft: int | None = None
        """Most tokens of the next draft; None until one was verified."""

    def extend(self, ids: Iterable[int]) -> None:
        """Append tokens of the stream."""
        for token in ids:
            self._continuations[tuple(self._ids[-NGRAM_SIZE:])] = len(self._ids)
            self._ids.append(token)

    def propose(self, max_tokens: int) -> list[int]:
        """Return up to `max_tokens` tokens that may come next; none after a new n-gram."""
        start = self._continuations.get(tuple(self._ids[-NGRAM_SIZE:]))
        length = max_tokens if self._max_draft is None else min(max_tokens, self._max_draft)
        return [] if start is None else self._ids[start : start + max(length, 0)]

    def record_accepted(self, num_accepted: int) -> None:
        """Limit the next draft to twice the tokens that were accepted of the last, but at least 1.

        Rejected tokens cost time. An answer in the model's own words is soon drafted one token at a
        time, and one that goes on to repeat the prompt is back at full length in a few steps.
        """
        self._max_draft = max(1, 2 * num_accepted)

    def __len__(self) -> int:
        return len(self._ids)
