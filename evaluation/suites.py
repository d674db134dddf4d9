"""Builds the suites of questions, and gets both adapters' answers through the engine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatbot.engine.batch import submit_prompts, wait_for_texts
from chatbot.engine.default_sampling import MIN_ANSWER_TOKENS
from chatbot.engine.factory import start_batch_engine
from chatbot.engine.protocol import Sampling
from chatbot.model.base import Base
from chatbot.model.chat_template import Messages, encode, encode_answer
from chatbot.model.scoring import EncodedAnswer, divergences_from_base, token_logprobs
from feedback.errors import TalkbackError
from feedback.matching.surface_forms import unseen_forms
from feedback.similarity import near_duplicates, normalise_text
from feedback.snapshot import Record, Snapshot

LEAK_SIMILARITY = 0.9
"""Trigram similarity from which a held-out question counts as one that trained."""


class SuiteError(TalkbackError):
    """Says that a row cannot be asked; names the row and what it must look like."""


@dataclass(frozen=True)
class Case:
    """Holds one question: the turns up to it, the right answer, and the one that was corrected."""

    prompt: Messages
    expected: str
    rejected: str | None = None
    thought: str | None = None
    """What the model thought before the answer that was corrected, where thinking is on."""
    form_of: str | None = None
    """The taught question that this is another form of."""

    @property
    def question(self) -> str:
        """Return the last message of the person."""
        return self.prompt[-1]["content"]


@dataclass(frozen=True)
class PreferencePair:
    """Holds a held-out pair: the answer that people chose and the one they rejected."""

    prompt: Messages
    chosen: str
    rejected: str
    thought: str | None = None


# -- The questions


def parse_cases(rows: Iterable[Record]) -> list[Case]:
    """Parse rows of sft.jsonl's form, or of the retention's (``{"messages": [...]}``).

    Raises SuiteError for any other row.
    """
    return [_parse_case(row) for row in rows]


def _parse_case(row: Record) -> Case:
    try:
        turns = [*row["prompt"], *row["completion"]] if "prompt" in row else row["messages"]
        *prompt, last = turns
        if not prompt or last["role"] != "assistant":
            raise SuiteError(f"a row must end in an assistant's answer to something: {row}")
        return Case(prompt, last["content"], row.get("rejected"), row.get("thought"))
    except (KeyError, TypeError, ValueError) as error:
        raise SuiteError(f"a row needs messages, or prompt and completion: {row}") from error


def parse_pairs(rows: Iterable[Record]) -> list[PreferencePair]:
    """Parse rows of dpo.jsonl's form."""
    return [
        PreferencePair(
            row["prompt"],
            row["chosen"][0]["content"],
            row["rejected"][0]["content"],
            row.get("thought"),
        )
        for row in rows
    ]


def other_forms(taught: Sequence[Case], trained: Iterable[Case], most: int) -> list[Case]:
    """Return taught questions as other people would type them, none as it trained: of each
    question one form, then another, until there are `most`."""
    seen = {_comparable_prompt(case.prompt) for case in trained}
    forms = [
        (
            number,
            replace(case, prompt=_ask(case, form), rejected=None, form_of=case.question),
        )
        for case in taught
        for number, form in enumerate(unseen_forms(case.question))
    ]
    unseen = [each for each in forms if _comparable_prompt(each[1].prompt) not in seen]
    return [case for _, case in sorted(unseen, key=lambda each: each[0])][:most]


def _ask(case: Case, form: str) -> Messages:
    return [*case.prompt[:-1], {**case.prompt[-1], "content": form}]


def _comparable_prompt(prompt: Messages) -> tuple[str, ...]:
    """Return the texts of a dialogue: forms of one question differ in no more than their marks."""
    return tuple(turn["content"].strip() for turn in prompt if turn["role"] != "system")


def exclude_trained(retention: Sequence[Case], trained: Iterable[Case]) -> list[Case]:
    """Return the cases whose question did not train: only those show what is forgotten."""
    seen = {_comparable_dialogue(case.prompt) for case in trained}
    return [case for case in retention if _comparable_dialogue(case.prompt) not in seen]


def find_leaks(snapshot: Snapshot) -> list[str]:
    """Return the held-out questions that trained after all, word for word or nearly."""
    files = {"train": ("sft", "dpo"), "held": ("held_out", "held_out_pairs")}
    prompts = {
        f"{side} {name} {number}": row["prompt"]
        for side, names in files.items()
        for name in names
        for number, row in enumerate(snapshot.rows(name))
    }
    near = near_duplicates(
        {key: _comparable_dialogue(prompt) for key, prompt in prompts.items()},
        LEAK_SIMILARITY,
        known={key for key in prompts if key[0] == "h"},
    )
    leaked = {held for held, _ in near}
    return sorted(prompts[key][-1]["content"] for key in leaked)


def _comparable_dialogue(prompt: Messages) -> str:
    """Return the normalised dialogue without its system message, which changes no question."""
    return normalise_text(" ".join(turn["content"] for turn in prompt if turn["role"] != "system"))


# -- The answers


def answer_limit(base: Base, cases: Sequence[Case], least: int = MIN_ANSWER_TOKENS) -> int:
    """Return after how many tokens an answer is cut: no expected one is longer."""
    expected = [encode_answer(base.tokenizer, case.prompt, case.expected)[1] for case in cases]
    return max([least, *map(len, expected)])


def generate_answers(
    base: Base,
    adapters: Mapping[str, Path],
    asked: Sequence[Case],
    max_tokens: int,
    thinking: int = 0,
) -> dict[str, list[str]]:
    """Return each adapter's greedy answers to all cases, by adapter id, without the thoughts of at
    most ``thinking`` tokens before them.

    They come from the engine that serves, so what is judged is what people would get. Raises
    EngineError when the engine fails.
    """
    prompts = [encode(base.tokenizer, case.prompt, thinking=thinking > 0) for case in asked]
    sampling = Sampling(max_tokens=max_tokens, thinking=thinking)
    engine = start_batch_engine(base, prompts, max_tokens + thinking, len(adapters))
    try:
        for name, folder in adapters.items():
            engine.load(name, folder)
        streams = {name: submit_prompts(engine, prompts, name, sampling) for name in adapters}
        return {name: wait_for_texts(streams[name]) for name in adapters}
    finally:
        engine.close()


class AnswerScorer:
    """Computes how likely each adapter finds given answers, by its weights."""

    def __init__(self, base: Base, adapters: Mapping[str, Path], *, thinking: bool = False) -> None:
        """Score answers behind the thoughts that are given with them, or without ``thinking``."""
        from peft import PeftModel

        self.base, self.thinking = base, thinking
        names = iter(adapters.items())
        name, folder = next(names)
        self.model: Any = PeftModel.from_pretrained(base.model, folder, adapter_name=name)
        for name, folder in names:
            self.model.load_adapter(folder, adapter_name=name)

    def close(self) -> None:
        """Give the base its model back as it was."""
        self.model.unload()

    def answer_logprobs(
        self, adapter: str, asked: Sequence[tuple[Messages, str | None, str]]
    ) -> list[tuple[float, int]]:
        """Return for each (prompt, thought, answer) the answer's log-probability and tokens."""
        self.model.set_adapter(adapter, inference_mode=True)
        return self._score(
            [
                encode_answer(
                    self.base.tokenizer, prompt, answer, thought=thought if self.thinking else None
                )
                for prompt, thought, answer in asked
            ]
        )

    def base_logprobs(self, texts: Sequence[str]) -> list[float]:
        """Return how likely the base finds each text on its own: its log-probability."""
        tokenizer = self.base.tokenizer
        marks = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        start = [mark for mark in marks if mark is not None][:1]
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        with self.model.disable_adapter():
            return [total for total, _ in self._score([(start, ids) for ids in encoded])]

    def _score(self, rows: Sequence[EncodedAnswer]) -> list[tuple[float, int]]:
        """Return each answer's log-probability and tokens, by the adapter that is set."""
        self.model.eval()
        scored = token_logprobs(self.model, rows, self.base.tokenizer.pad_token_id)
        return [(float(logprobs.sum()), len(logprobs)) for logprobs in scored]

    def divergences(self, adapters: Sequence[str], cases: Sequence[Case]) -> dict[str, list[float]]:
        """Return how far each adapter's probabilities lie from the base's along the answer that is
        expected in each case: nats a token."""
        rows = [encode_answer(self.base.tokenizer, case.prompt, case.expected) for case in cases]
        self.model.eval()
        pad = self.base.tokenizer.pad_token_id
        return divergences_from_base(self.model, adapters, rows, pad)
