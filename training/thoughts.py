"""Gives training rows the thought that the base has before their answer, where thinking is on.

An answer is learnt behind the prompt as served: behind a thought that the base made, or, where
thinking is off, behind none. The thought itself is never learnt.
"""

from collections.abc import Sequence

from chatbot.engine.batch import submit_prompts, wait_for_streams
from chatbot.engine.factory import start_batch_engine
from chatbot.engine.protocol import BASE, Sampling
from chatbot.model.base import Base
from chatbot.model.chat_template import encode, encode_answer
from feedback.snapshot import Record

ANSWERS = ("completion", "chosen", "rejected")
"""The keys of a row that hold an answer."""
CUT_MARGIN = 4
"""Tokens more than are too many: at its new end a text may be tokenized otherwise."""


def with_thoughts(
    base: Base, rows: Sequence[Record], thinking: int, max_length: int | None
) -> list[Record]:
    """Return the rows with thoughts of at most `thinking` tokens; without any for 0.

    A row keeps the thought of the answer that people saw; one whose answer was given without gets
    what the base thinks of this prompt. A thought that makes a row longer than `max_length` tokens
    is cut, as the budget cuts one.
    """
    if not thinking:
        return [{key: row[key] for key in row if key != "thought"} for row in rows]
    lacking = [row for row in rows if "thought" not in row]
    made = iter(_think(base, lacking, thinking) if lacking else ())
    whole = [row if "thought" in row else row | {"thought": next(made)} for row in rows]
    return [row | {"thought": _cut(base, row, max_length)} for row in whole]


def _think(base: Base, rows: Sequence[Record], thinking: int) -> list[str]:
    """Return what the base thinks, greedily, before it would answer each row's prompt."""
    prompts = [encode(base.tokenizer, row["prompt"], thinking=True) for row in rows]
    sampling = Sampling(max_tokens=1, thinking=thinking)
    engine = start_batch_engine(base, prompts, thinking + 1)
    try:
        streams = wait_for_streams(submit_prompts(engine, prompts, BASE, sampling))
        return [stream.thought if stream else "" for stream in streams]
    finally:
        engine.close()


def _cut(base: Base, row: Record, max_length: int | None) -> str:
    tokenizer, thought = base.tokenizer, str(row["thought"])
    answers = [row[key][0]["content"] for key in ANSWERS if key in row]
    encoded = [encode_answer(tokenizer, row["prompt"], one, thought=thought) for one in answers]
    excess = max(len(prompt) + len(answer) for prompt, answer in encoded) - (max_length or 0)
    if not max_length or excess <= 0:
        return thought
    ids = tokenizer(thought, add_special_tokens=False)["input_ids"]
    kept = ids[: max(0, len(ids) - excess - CUT_MARGIN)]
    return str(tokenizer.decode(kept)).rstrip("\ufffd")
