"""Defines what is held of one question: both adapters' answers, and their scores."""

from dataclasses import dataclass

from evaluation import metrics


@dataclass(frozen=True)
class ScoredAnswer:
    """Holds one adapter's answer to one question, with its scores.

    `right` is exact match after normalising, `chrf` is 0 to 100, `loss` is the nats per token that
    the adapter gives the expected answer. `margin` is by how many nats a token it finds the
    expected answer likelier than the one that was corrected, None where none was.
    """

    answer: str
    right: bool
    chrf: float
    loss: float
    margin: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Holds one question with both adapters' answers; `rejected` is the answer once corrected.

    `form_of` is the taught question that this is another form of.
    """

    question: str
    expected: str
    rejected: str | None
    candidate: ScoredAnswer
    current: ScoredAnswer
    form_of: str | None = None


@dataclass(frozen=True)
class PreferenceMargin:
    """Holds by how many nats each adapter prefers the chosen answer of one held-out pair."""

    question: str
    candidate: float
    current: float


@dataclass(frozen=True)
class Divergence:
    """Holds how far both adapters' probabilities lie from the base's along its own answer to one
    general prompt: the KL divergence in nats a token."""

    question: str
    candidate: float
    current: float


@dataclass(frozen=True)
class GeneralAnswer:
    """Holds what the base and both adapters answer to one general prompt; `accepted` are the texts
    of which a right answer holds one, none where no answer is right or wrong."""

    question: str
    accepted: list[str]
    base: str
    candidate: str
    current: str

    def is_right(self, answer: str) -> bool:
        """Tell whether an answer to this prompt holds an accepted text."""
        return metrics.holds_one_of(answer, self.accepted)


@dataclass(frozen=True)
class Orderliness:
    """Holds how much likelier the base finds texts than themselves in another order, text by text:
    their letters, and their words, shuffled; nats a character.

    Language has an order, in any language, and noise has none. What people asked says how much of
    it this base sees in such texts; `letters` and `words` are of the answers taught.
    """

    letters: list[float]
    words: list[float]
    asked_letters: list[float]
    asked_words: list[float]


def is_loss(comparison: Comparison) -> bool:
    """Tell whether the current adapter alone is right."""
    return comparison.current.right and not comparison.candidate.right


def is_win(comparison: Comparison) -> bool:
    """Tell whether the candidate alone is right."""
    return comparison.candidate.right and not comparison.current.right
