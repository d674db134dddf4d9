"""Reads the settings of the gate."""

from typing import ClassVar, Literal

from pydantic import Field

from feedback.settings import Settings


class GateSettings(Settings):
    """Holds ``[gate]`` of talkback.toml."""

    table: ClassVar[str] = "gate"

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Highest probability of a wrong promotion, in every one-sided test."""
    min_evidence: int = Field(default=5, ge=1)
    """Fewest targets on which the two adapters must differ."""
    measure: Literal["chrf", "similarity", "loss", "margin", "exact"] = "chrf"
    """What held-out corrections, and other forms of the trained ones, are compared by: chrF of the
    answers, their similarity to the correction by an embedding, the correction's likelihood, the
    preference for it over the answer that it replaced, or word for word. docs/judging.md has what
    each of them says of bad adapters."""
    margin: float = Field(default=0.02, ge=0, lt=1)
    """How far the share of right retention answers may fall."""
    blind: float = Field(default=0.1, gt=0, le=1)
    """The fall that the retention suite must be able to rule out."""
    divergence: float = Field(default=0.1, gt=0)
    """How far the probabilities may lie from the base's on general prompts: nats a token (KL)."""
    need_retention: bool = False
    """Whether an adapter can be judged at all where nothing shows what it has forgotten."""
    perplexity: float = Field(default=1.25, gt=1)
    """The factor by which perplexity may rise on retention and held-out answers."""
    collapse_count: int = Field(default=5, ge=2)
    """So many different answers must have become one to speak of a collapse."""
    collapse_share: float = Field(default=0.3, gt=0, le=1)
    """And this share of all different answers of the suite."""
    noise: float = Field(default=0.2, ge=0, lt=1)
    """The share of the order in people's questions, letter by letter, that taught answers need; 0
    refuses none."""
    noise_words: float = Field(default=0.25, ge=0, lt=1)
    """The same word by word."""
