"""What trains is the answer behind the prompt as served; thoughts are context, never a lesson."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatbot.model.base import Base, load_base
from chatbot.model.chat_template import encode
from chatbot.model.untrained import write_untrained
from chatbot.prompt import merge_turns
from evaluation import suites
from feedback.curation.curate import curate
from feedback.review.decisions import decide
from feedback.snapshot import write_snapshot
from feedback.store import Store
from tests.fixtures.conversations import SPEAKER
from tests.fixtures.thinking_base import script_tokens, write_thinking_base
from training import dpo, sft
from training.thoughts import with_thoughts

PROMPT = [{"role": "user", "content": "When do you open?"}]
ROW: dict[str, Any] = {
    "prompt": PROMPT,
    "completion": [{"role": "assistant", "content": "At ten."}],
    "weight": 1,
}
THOUGHT = "They ask for hours."
BEHIND = f"<think>\n{THOUGHT}\n</think>\n\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(write_thinking_base(tmp_path_factory.mktemp("thinking"))))


def add_thinking_answer(store: Store, text: str, thought: str | None) -> str:
    conversation = store.start_conversation("ann", "When do you open?")
    asked = store.add_message(conversation, None, "user", "When do you open?")
    return store.add_message(conversation, asked, "assistant", text, SPEAKER, thought=thought)


def test_a_row_has_the_bare_answer_and_the_thought_apart(tmp_path: Path) -> None:
    store = Store(tmp_path / "talkback.db")
    corrected = add_thinking_answer(store, "At nine.", THOUGHT)
    decide(store, corrected, "rita", "correct", "At ten.")
    snapshot = write_snapshot(curate(store), tmp_path)
    (row,), (pair,) = snapshot.rows("sft"), snapshot.rows("dpo")
    assert row == ROW | {"thought": THOUGHT} and pair["thought"] == THOUGHT
    assert pair["rejected"][0]["content"] == "At nine."
    (found,) = store.rows("select * from approved")
    assert THOUGHT not in json.dumps(dict(found))
    assert not store.rows("select 1 from approved_fts where approved_fts match 'hours'")


def test_without_thoughts_rows_and_prompts_are_as_ever(tmp_path: Path) -> None:
    store = Store(tmp_path / "talkback.db")
    answer = add_thinking_answer(store, "At nine.", None)
    assert store.message(answer).thought is None
    decide(store, answer, "rita", "correct", "At ten.")
    assert write_snapshot(curate(store), tmp_path).rows("sft") == [ROW]


def test_earlier_thoughts_go_to_the_template_alone(tmp_path: Path, base: Base) -> None:
    """Qwen3's drops them, in serving as in training."""
    store = Store(tmp_path / "talkback.db")
    first = add_thinking_answer(store, "At nine.", THOUGHT)
    question = store.add_message(store.message(first).conversation_id, first, "user", "Really?")
    second = store.add_message(
        store.message(first).conversation_id, question, "assistant", "Yes.", SPEAKER
    )
    decide(store, second, "rita", "correct", "No.")
    (row, *_) = write_snapshot(curate(store), tmp_path).rows("sft")
    history = merge_turns(store.thread(question))
    assert row["prompt"] == history and history[1]["thought"] == THOUGHT
    assert THOUGHT not in base.tokenizer.decode(encode(base.tokenizer, history))


@pytest.mark.parametrize("thinking", [0, 40])
def test_the_answer_alone_is_learnt_behind_the_prompt_as_served(base: Base, thinking: int) -> None:
    rows = with_thoughts(base, [ROW | {"thought": THOUGHT}], thinking, 200)
    (row,) = sft.encode_rows(base.tokenizer, rows, 200)
    prompt, answer = sft.split_row(row)
    served = base.tokenizer.decode(encode(base.tokenizer, PROMPT, thinking=thinking > 0))
    assert base.tokenizer.decode(prompt) == served + (BEHIND if thinking else "")
    assert thinking or served.endswith("<think>\n\n</think>\n\n")
    assert base.tokenizer.decode(answer) == "At ten.<|im_end|>"
    pair = {"prompt": PROMPT, "thought": THOUGHT, "chosen": ROW["completion"]}
    pair["rejected"] = [{"role": "assistant", "content": "At nine."}]
    (ids,) = dpo.encode_rows(base.tokenizer, with_thoughts(base, [pair], thinking, 200), 200)
    assert ids["prompt_ids"] == prompt and ids["chosen_ids"] == answer


def test_a_row_without_a_thought_gets_the_bases_own(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = base.tokenizer(BEHIND, add_special_tokens=False)["input_ids"]
    script_tokens(monkeypatch, tokens)
    rows = with_thoughts(base, [ROW, ROW | {"thought": "Mine."}, ROW], 40, 200)
    assert [row["thought"] for row in rows] == [THOUGHT, "Mine.", THOUGHT]


def test_a_thought_too_long_to_train_is_cut_and_the_answer_is_whole(base: Base) -> None:
    endless = ROW | {"thought": "Hm, so. " * 100}
    rows = with_thoughts(base, [endless], 2000, 100)
    (row,) = sft.encode_rows(base.tokenizer, rows, 100)
    assert 90 <= len(row["input_ids"]) <= 100
    assert base.tokenizer.decode(sft.split_row(row)[1]) == "At ten.<|im_end|>"


@pytest.mark.parametrize("thinking", [0, 40])
def test_bare_answers_are_compared_in_the_mode_that_serves(
    tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch, thinking: int
) -> None:
    written = f"{BEHIND if thinking else ''}At ten.<|im_end|>"
    script_tokens(monkeypatch, base.tokenizer(written, add_special_tokens=False)["input_ids"])
    adapter = write_untrained(base, tmp_path)
    cases = suites.parse_cases([ROW | {"thought": THOUGHT}])
    found = suites.generate_answers(base, {adapter.name: adapter}, cases, 16, thinking)
    assert found == {adapter.name: ["At ten."]}
