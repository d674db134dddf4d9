"""What the model reads: system prompt, history, exemplars and question, cut to fit."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from chatbot.model.base import encode
from feedback.exemplars import format_exemplars
from feedback.store import Message

Turns = list[dict[str, str]]


def fit(
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    history: Sequence[Message],
    question: str,
    examples: Sequence[tuple[str, str]],
    room: int,
) -> tuple[list[int], bool]:
    """The prompt's token ids, at most ``room`` of them, and whether the exemplars are in it.

    The oldest turns go first, then the exemplars. The question itself is never cut: alone and
    too long it comes back whole, for the engine to refuse with the numbers.
    """
    before = turns(history)
    for shown in (examples, ()) if examples else ((),):
        last = format_exemplars(question, shown)
        ids = _longest(tokenizer, system, before, last, room)
        if len(ids) <= room:
            break
    return ids, bool(shown)


def turns(history: Iterable[Message]) -> Turns:
    """The thread as chat templates want it: people and bot by turns, nothing empty.

    An exchange whose answer stayed empty is left out with its question; a question that was never
    answered is joined to the next.
    """
    found: Turns = []
    for message in history:
        if message.role == "assistant" and not message.content.strip():
            while found and found[-1]["role"] == "user":
                found.pop()
        elif found and found[-1]["role"] == message.role:
            found[-1]["content"] += "\n\n" + message.content
        else:
            found.append({"role": message.role, "content": message.content})
    return found


def _longest(
    tokenizer: PreTrainedTokenizerBase, system: str, before: Turns, last: str, room: int
) -> list[int]:
    """The prompt with as much of the history as fits, beginning with a turn of the person's."""
    head = [{"role": "system", "content": system}] if system else []

    def ids(start: int) -> list[int]:
        return encode(tokenizer, _joined([*head, *before[start:]], last))

    whole = ids(0)
    if len(whole) <= room or not before:
        return whole
    starts = [i for i, turn in enumerate(before) if turn["role"] == "user" and i > 0]
    starts.append(len(before))
    found = bisect_left(starts, True, key=lambda start: len(ids(start)) <= room)
    return ids(starts[min(found, len(starts) - 1)])


def _joined(before: Turns, last: str) -> Turns:
    """The question as the last turn; one that follows an unanswered question continues it."""
    if before and before[-1]["role"] == "user":
        last = before[-1]["content"] + "\n\n" + last
        before = before[:-1]
    return [*before, {"role": "user", "content": last}]
