"""Guessing what comes next from what is there already: prompt lookup decoding.

An answer that repeats an approved one word for word is in the prompt. The model reads a guess of
several tokens in one step, hardly longer than for one, and every token of it that it would have
chosen itself is kept: the text is the same as without guesses, only sooner.

Source: Saxena, "Prompt Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding
"""

from collections.abc import Iterable

NGRAM_SIZE = 2
"""Tokens that must have stood together before. Of single ones guesses are mostly wrong."""
MAX_SPECULATING = 4
"""Most streams that guess: more fill the step with tokens that are sure to be wanted."""


class PromptLookup:
    """The tokens of one stream so far, and what came after each pair of them the last time."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._continuations: dict[tuple[int, ...], int] = {}
        """What stood together -> where the token after it is."""
        self._max_draft: int | None = None
        """How many tokens a guess has at most, once one was tried."""

    def extend(self, ids: Iterable[int]) -> None:
        """More tokens."""
        for token in ids:
            self._continuations[tuple(self._ids[-NGRAM_SIZE:])] = len(self._ids)
            self._ids.append(token)

    def propose(self, max_tokens: int) -> list[int]:
        """At most so many tokens that may come next; none if the last ones are new together."""
        found = self._continuations.get(tuple(self._ids[-NGRAM_SIZE:]))
        max_tokens = max_tokens if self._max_draft is None else min(max_tokens, self._max_draft)
        return [] if found is None else self._ids[found : found + max(max_tokens, 0)]

    def record_accepted(self, num_accepted: int) -> None:
        """So many tokens of a guess were right. The next may have twice as many, for what is read
        in vain takes time: an answer of the model's own soon guesses one at a time."""
        self._max_draft = max(1, 2 * num_accepted)

    def __len__(self) -> int:
        return len(self._ids)
