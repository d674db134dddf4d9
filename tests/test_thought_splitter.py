"""A thought and the answer after it are told apart by the base's marks, however text comes."""

import pytest

from chatbot.engine.text.detokenizer import Detokenizer
from chatbot.engine.text.thought_splitter import ThoughtSplitter
from chatbot.model.thought_format import ThoughtFormat, find_thought_format
from tests.fixtures import templates_at_hand
from tests.fixtures.templates_at_hand import TEMPLATES

THINK = ThoughtFormat("<think>\n", "</think>\n\n", prefilled=False)
BRACKETS = ThoughtFormat("[THINK]", "[/THINK]", prefilled=False)
CHANNELS = ThoughtFormat(
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    prefilled=False,
)


def split(marks: ThoughtFormat, text: str, size: int, *, opened: bool = False) -> tuple[str, str]:
    splitter = ThoughtSplitter(marks, opened=opened)
    pieces = [splitter.add(text[i : i + size]) for i in range(0, len(text), size)]
    return "".join(thought for thought, _ in pieces), "".join(answer for _, answer in pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("marks", "text", "thought", "answer"),
    [
        (
            THINK,
            "<think>\nA < b, so\n\n</ ok\n</think>\n\nTen. </think>",
            "A < b, so\n\n</ ok",
            "Ten. </think>",
        ),
        (THINK, "\n<think>hm</think>Ten.", "hm", "Ten."),
        (THINK, "<think>\n\n</think>\n\nTen.", "", "Ten."),
        (THINK, "</think>\n\nTen.", "", "Ten."),
        (THINK, "  <thinner> Ten.\n", "", "  <thinner> Ten.\n"),
        (BRACKETS, "[THINK]hm [/ [/THINK]\nTen.\n", "hm [/", "Ten.\n"),
        (CHANNELS, CHANNELS.opening + "hm" + CHANNELS.closing + "Ten.", "hm", "Ten."),
        (CHANNELS, "<|channel|>final<|message|>Ten.", "", "Ten."),
    ],
)
def test_marks_are_found_in_pieces_of_any_size(
    marks: ThoughtFormat, text: str, thought: str, answer: str, size: int
) -> None:
    assert split(marks, text, size) == (thought, answer)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_thought_that_the_prompt_has_opened_needs_no_opening(size: int) -> None:
    assert split(THINK, "hm\n</think>\n\nTen.", size, opened=True) == ("hm", "Ten.")


def test_control_tokens_are_no_text_in_a_thought_either() -> None:
    tokenizer = templates_at_hand.tokenizer()
    detokenizer = Detokenizer(tokenizer, thoughts=ThoughtSplitter(THINK, opened=False))
    ids = tokenizer("<think>\nh<|im_start|>m</think>\n\nTe<|im_start|>n.").input_ids
    pieces = [detokenizer.add(id) for id in ids] + [detokenizer.flush()]
    assert "".join(piece.thought for piece in pieces) == "hm"
    assert "".join(piece.text for piece in pieces) == "Ten."


def test_thoughts_of_every_template_at_hand_are_found() -> None:
    tokenizer = templates_at_hand.tokenizer()
    num_thinking = 0
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        if (marks := find_thought_format(tokenizer)) is not None:
            num_thinking += 1
            text = f"{'' if marks.prefilled else marks.opening}hm, so{marks.closing}Ten."
            for size in (1, 3, 1000):
                found = split(marks, text, size, opened=marks.prefilled)
                assert found == ("hm, so", "Ten."), name
    assert num_thinking > 10
