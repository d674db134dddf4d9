"""Builds the prompt: system prompt, history, exemplars and question, cut to fit the context."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from chatbot.model.chat_template import encode
from feedback.exemplars import format_exemplars
from feedback.messages import Message

ChatMessages = list[dict[str, str]]


def fit_prompt(
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    history: Sequence[Message],
    question: str,
    examples: Sequence[tuple[str, str]],
    max_tokens: int,
) -> tuple[list[int], bool]:
    """Return the prompt's token ids, at most ``room`` of them, and whether the exemplars are in it.

    The oldest turns go first, then the exemplars. The question itself is never cut: alone and
    too long it comes back whole, for the engine to refuse with the numbers.
    """
    before = merge_turns(history)
    for shown in (examples, ()) if examples else ((),):
        last = format_exemplars(question, shown)
        ids = _longest_that_fits(tokenizer, system, before, last, max_tokens)
        if len(ids) <= max_tokens:
            break
    return ids, bool(shown)


def merge_turns(history: Iterable[Message]) -> ChatMessages:
    """Return a thread as chat templates want it: user and assistant alternate, nothing is empty.

    An exchange whose answer stayed empty is left out with its question; a question that was never
    answered is joined to the next one.
    """
    found: ChatMessages = []
    for message in history:
        if message.role == "assistant" and not message.content.strip():
            while found and found[-1]["role"] == "user":
                found.pop()
        elif found and found[-1]["role"] == message.role:
            found[-1]["content"] += "\n\n" + message.content
        else:
            found.append({"role": message.role, "content": message.content})
    return found


def _longest_that_fits(
    tokenizer: PreTrainedTokenizerBase, system: str, before: ChatMessages, last: str, room: int
) -> list[int]:
    """Return the prompt with as much of the history as fits, beginning with a user's turn.

    The longest prompt is found by bisection, since encoding a long history takes time. Without
    any history the prompt may still be longer than ``max_tokens``.
    """
    head = [{"role": "system", "content": system}] if system else []

    def ids(start: int) -> list[int]:
        return encode(tokenizer, _append_question([*head, *before[start:]], last))

    whole = ids(0)
    if len(whole) <= room or not before:
        return whole
    starts = [i for i, turn in enumerate(before) if turn["role"] == "user" and i > 0]
    starts.append(len(before))
    found = bisect_left(starts, True, key=lambda start: len(ids(start)) <= room)
    return ids(starts[min(found, len(starts) - 1)])


def _append_question(before: ChatMessages, last: str) -> ChatMessages:
    """Append the question; after an unanswered question it continues that one's turn."""
    if before and before[-1]["role"] == "user":
        last = before[-1]["content"] + "\n\n" + last
        before = before[:-1]
    return [*before, {"role": "user", "content": last}]
