"""The general prompts, what a base answers to them, and which of them show what was forgotten."""

import json
from collections import Counter
from pathlib import Path

import pytest

from chatbot.general import answers
from chatbot.general.answers import PROMPTS, answer_general_prompts
from chatbot.general.split import partition_taught, split_answers
from chatbot.model.base import load_base
from chatbot.model.untrained import write_untrained
from evaluation.suites import AnswerScorer, parse_cases
from feedback.curation.row_files import Record, read_rows
from feedback.similarity import near_duplicates
from tests.fixtures import tiny_models
from tests.fixtures.snapshots import dialogue_row


def answered(*questions: str) -> list[Record]:
    return [{**dialogue_row(question, "Yes."), "kind": "knowledge"} for question in questions]


def test_the_prompts_are_questions_of_all_kinds_on_both_sides_and_none_twice() -> None:
    rows = read_rows(PROMPTS)
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles in (["user"], ["user", "assistant", "user"]), row
        assert all(row.get("right", ["?"])), row
    questions = {str(i): row["messages"][-1]["content"] for i, row in enumerate(rows)}
    assert list(near_duplicates(questions, 0.7)) == []
    replayed, asked = split_answers([{**row, "messages": [*row["messages"]] * 2} for row in rows])
    kinds = Counter(row["kind"] for row in rows)
    assert len(kinds) == 9 and min(kinds.values()) >= 20
    for kind, count in Counter(row["kind"] for row in asked).items():
        assert 0.25 < count / kinds[kind] < 0.42
    assert len(replayed) + len(asked) == len(rows)


def test_the_base_answers_once_and_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    asked = [
        {"kind": "sums", "messages": [{"role": "user", "content": f"Say {n}"}]} for n in range(7)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    monkeypatch.setattr(answers, "PROMPTS", prompts)
    monkeypatch.setattr(answers, "BATCH", 2)
    base = load_base(str(tiny_models.write_model(tmp_path / "base")))
    whole = answer_general_prompts(base, "Be kind.", tmp_path / "whole")

    def stop(line: str) -> None:
        if " 4 of 7" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_general_prompts(base, "Be kind.", tmp_path / "out", stop)
    (draft,) = (tmp_path / "out").iterdir()
    with draft.open("a") as file:
        file.write('{"torn')
    lines: list[str] = []
    made = answer_general_prompts(base, "Be kind.", tmp_path / "out", lines.append)
    assert lines[0] == "the base has answered 6 of 7 general prompts"
    assert made.name == whole.name and made.read_text() == whole.read_text()
    assert [file.name for file in made.parent.iterdir()] == [made.name]
    for row, given in zip(read_rows(made), asked, strict=True):
        system, question, answer = row["messages"]
        assert system["content"] == "Be kind." and [question] == given["messages"]
        assert answer["role"] == "assistant"

    lines.clear()
    assert answer_general_prompts(base, "Be kind.", tmp_path / "out", lines.append) == made
    assert lines == []
    assert answer_general_prompts(base, "Be brief.", tmp_path / "out").name != made.name


def test_a_prompt_like_what_people_have_taught_is_left_out() -> None:
    rows = answered("What is your name?", "and your name is", "Who made you?", "How big is Rome?")
    kept, taught = partition_taught(rows, ["what's your NAME", "Who built Rome?"])
    assert kept == rows[2:] and taught == rows[:2]
    assert partition_taught(rows, []) == (rows, [])


def test_what_the_base_answers_with_nothing_is_neither_replayed_nor_asked() -> None:
    rows = answered(*(f"Question {n}" for n in range(9)))
    for row in rows[3:5]:
        row["messages"][-1]["content"] = " "
    replayed, asked = split_answers(rows)
    assert len(replayed) == 5 and all(row["by_base"] for row in replayed)
    assert [row["messages"][0]["content"] for row in asked] == ["Question 0", "Question 6"]


def test_divergence_is_nothing_for_an_untrained_adapter_and_grows_with_what_is_added(
    tmp_path: Path,
) -> None:
    base = load_base(str(tiny_models.write_model(tmp_path / "base")))
    cases = parse_cases(answered("Where is it?", "How much is that, all in all?"))
    folders = [
        write_untrained(base, tmp_path),
        tiny_models.write_adapter(tmp_path, base, seed=1, strength=0.01),
        tiny_models.write_adapter(tmp_path, base, seed=1, strength=0.1),
    ]
    scorer = AnswerScorer(base, {folder.name: folder for folder in folders})
    none, little, much = scorer.divergences([f.name for f in folders], cases).values()
    scorer.close()
    assert none == [0, 0]
    assert all(0 < one < more for one, more in zip(little, much, strict=True))
