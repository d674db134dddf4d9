"""Builds the prompt: system prompt, history, exemplars and question, cut to fit the context."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from chatbot.exemplar_form.forms import DEFAULT_FORM, ChatMessages, ExemplarForm, write_question
from chatbot.model.chat_template import encode
from feedback.messages import Message


def fit_prompt(
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    history: Sequence[Message],
    question: str,
    examples: Sequence[tuple[str, str]],
    max_tokens: int,
    *,
    form: ExemplarForm = DEFAULT_FORM,
    thinking: bool = False,
) -> tuple[list[int], bool]:
    """Return the prompt's token ids, at most ``max_tokens``, and whether exemplars are in it.

    ``examples`` are (question, answer) pairs, best first, of which the form shows all or some.

    The oldest turns go first, then the exemplars. The question itself is never cut: when
    it is too long alone, the prompt comes back too long, and the engine refuses it with the
    numbers.
    """
    messages = merge_turns(history)
    for shown in (examples, ()) if examples else ((),):
        end = write_question(form, question, shown)
        ids = _longest_that_fits(tokenizer, system, messages, end, max_tokens, thinking=thinking)
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
            found.append(message.to_dict())
    return found


def _longest_that_fits(
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    history: ChatMessages,
    end: ChatMessages,
    max_tokens: int,
    *,
    thinking: bool,
) -> list[int]:
    """Return the prompt with as much of the history as fits, beginning with a user's turn.

    The longest prompt is found by bisection, since encoding a long history takes time. Without
    any history the prompt may still be longer than ``max_tokens``.
    """
    head = [{"role": "system", "content": system}] if system else []

    def ids(start: int) -> list[int]:
        messages = _append_end([*head, *history[start:]], end)
        return encode(tokenizer, messages, thinking=thinking)

    whole = ids(0)
    if len(whole) <= max_tokens or not history:
        return whole
    starts = [i for i, turn in enumerate(history) if turn["role"] == "user" and i > 0]
    starts.append(len(history))
    found = bisect_left(starts, True, key=lambda start: len(ids(start)) <= max_tokens)
    return ids(starts[min(found, len(starts) - 1)])


def _append_end(messages: ChatMessages, end: ChatMessages) -> ChatMessages:
    """Append the prompt's end; after an unanswered question the last one continues its turn."""
    if messages and messages[-1]["role"] == "user":
        *turns, question = end
        both = messages[-1]["content"] + "\n\n" + question["content"]
        return [*messages[:-1], *turns, {**question, "content": both}]
    return [*messages, *end]
