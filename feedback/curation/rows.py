"""Defines what curation makes of feedback: rows, and what was dropped, with the reason."""

from dataclasses import dataclass, field
from typing import Literal

from feedback.exchange import Exchange
from feedback.similarity import normalise_text

Side = Literal["train", "held_out"]
MessageDict = dict[str, str]
"""``{"role": ..., "content": ...}``, and "thought" where a model thought before an answer."""


@dataclass(frozen=True)
class Row:
    """Holds one training example.

    ``sft``: answer ``prompt`` with ``chosen``; ``rejected`` is the answer that was corrected, if
    any. ``pair``: prefer ``chosen`` to ``rejected``.
    """

    kind: Literal["sft", "pair"]
    prompt: list[MessageDict]
    chosen: str
    rejected: str | None
    message_id: str
    sources: list[str]
    """Ids of the reviews and the feedback that it comes from."""
    people: list[str]
    """Whose words are in it; an erasure of theirs takes it along."""
    cluster: str = ""
    side: Side = "train"
    thought: str | None = None
    """What the model thought before the answer that people saw; where thinking is on, ``chosen`` is
    learnt behind it, and it is not learnt itself."""


@dataclass(frozen=True)
class Dropped:
    """Holds feedback that does not train, and the reason in words."""

    message_id: str
    reason: str
    sources: list[str] = field(default_factory=list)
    people: list[str] = field(default_factory=list)
    text: str = ""


def prompt_messages(exchange: Exchange) -> list[MessageDict]:
    """Return what an answer answers, as its speaker was given it: the turns before the answer,
    behind the system prompt, without the exemplars, which the adapter has to do without one day."""
    system = exchange.speaker.system_prompt.strip() if exchange.speaker else ""
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [message.to_dict() for message in exchange.thread[:-1]]


def same_text(first: str, second: str) -> bool:
    """Tell whether texts differ in case, punctuation and spacing at most: nothing to prefer."""
    return normalise_text(first) == normalise_text(second)
