"""Tests how tokens are formatted: whole words, spaces, parts of characters, special tokens."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chatbot.api.openai.logprobs import LogprobsFormatter
from chatbot.engine.stream import TokenLogprob
from tests.fixtures.tiny_models import STOP, write_tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama's: a mark stands for a space, bytes can be tokens."""
    vocabulary = ["<unk>", "\u2581When", "\u2581open", "<0xE6>", "<0xBC>", "<0xA2>"]
    model = models.BPE({word: id for id, word in enumerate(vocabulary)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return AutoTokenizer.from_pretrained(folder)


def format_tokens(
    tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> list[tuple[str, list[int] | None]]:
    entries = LogprobsFormatter(tokenizer)([TokenLogprob(id, -1.0) for id in ids])["content"]
    return [(entry["token"], entry["bytes"]) for entry in entries]


@pytest.mark.parametrize("text", ["When do you open?", " Straße", "漢字 🙂", "a\n\tb", "ø\x00ÿ"])
def test_bytes_together_are_the_text(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    entries = format_tokens(byte_level, byte_level.encode(text))
    assert b"".join(bytes(found or []) for _, found in entries).decode() == text
    assert all(token.startswith("bytes:\\x") or token in text for token, _ in entries)


def test_half_a_character_is_told_by_its_bytes(byte_level: PreTrainedTokenizerFast) -> None:
    (first, *_) = format_tokens(byte_level, byte_level.encode("☃"))
    assert first == ("bytes:\\xe2", [0xE2])


def test_special_tokens_have_their_name(byte_level: PreTrainedTokenizerFast) -> None:
    (id,) = byte_level.encode(STOP)
    assert format_tokens(byte_level, [id]) == [(STOP, list(STOP.encode()))]


def test_a_tokenizer_that_marks_spaces_keeps_them() -> None:
    entries = format_tokens(sentencepiece(), [1, 2, 3, 4, 5])
    assert [token for token, _ in entries][:2] == [" When", " open"]
    assert bytes(byte for _, found in entries[2:] for byte in found or []).decode() == "漢"
