"""Tokens as OpenAI shows them: their text, their bytes, and how likely they were.

Shape: https://platform.openai.com/docs/api-reference/chat/object (choices, logprobs)
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from chatbot.engine.stream import TokenLogprob

Logprobs = dict[str, Any]
FormatLogprobs = Callable[[list[TokenLogprob]], Logprobs]

REPLACEMENT = "\ufffd"


def byte_to_char_table() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    plain = {chr(byte): byte for byte in shown}
    return plain | {chr(256 + place): byte for place, byte in enumerate(hidden)}


CHAR_TO_BYTE = byte_to_char_table()


class LogprobsFormatter:
    """Spells the tokens of one tokenizer; what it has spelt it remembers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._token_texts: dict[int, dict[str, Any]] = {}

    def __call__(self, chances: list[TokenLogprob]) -> Logprobs:
        """The ``logprobs`` of a choice, or of a chunk of one."""
        return {"content": [self._entry(chance) for chance in chances], "refusal": None}

    def _entry(self, chance: TokenLogprob) -> dict[str, Any]:
        top = [self._token_entry(token, logprob) for token, logprob in chance.top]
        return self._token_entry(chance.token, chance.logprob) | {"top_logprobs": top}

    def _token_entry(self, token: int, logprob: float) -> dict[str, Any]:
        if token not in self._token_texts:
            self._token_texts[token] = self._text_and_bytes(token)
        return self._token_texts[token] | {"logprob": logprob}

    def _text_and_bytes(self, token: int) -> dict[str, Any]:
        """Text and bytes; half a character has no text of its own and is told by its bytes."""
        text = self._text(token)
        if REPLACEMENT not in text:
            return {"token": text, "bytes": list(text.encode())}
        token_bytes = _token_bytes(str(self._tokenizer.convert_ids_to_tokens(token)))
        if token_bytes is None:
            return {"token": text, "bytes": None}
        escaped = "".join(f"\\x{byte:02x}" for byte in token_bytes)
        return {"token": f"bytes:{escaped}", "bytes": list(token_bytes)}

    def _text(self, token: int) -> str:
        """What it adds after another token; at the start of a text some would lose their space."""
        return self._decode([token, token])[len(self._decode([token])) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _token_bytes(piece: str) -> bytes | None:
    """The bytes of a token that is no whole text, None where the tokenizer hides them."""
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    if piece and all(character in CHAR_TO_BYTE for character in piece):
        return bytes(CHAR_TO_BYTE[character] for character in piece)
    return None
