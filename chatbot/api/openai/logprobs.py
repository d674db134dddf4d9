"""Formats log probabilities as OpenAI does: each token with its text, bytes and log probability.

Shape: https://platform.openai.com/docs/api-reference/chat/object (choices, logprobs)
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from chatbot.engine.stream import TokenLogprob

Logprobs = dict[str, Any]
FormatLogprobs = Callable[[list[TokenLogprob]], Logprobs]

REPLACEMENT_CHARACTER = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character."""


def _char_to_byte_table() -> dict[str, int]:
    """Return GPT-2's table: the 256 characters that byte-level tokenizers write bytes as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    same = {chr(byte): byte for byte in printable}
    return same | {chr(256 + index): byte for index, byte in enumerate(others)}


CHAR_TO_BYTE = _char_to_byte_table()


class LogprobsFormatter:
    """Formats log probabilities of one tokenizer's tokens, whose texts are cached by token id."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._token_texts: dict[int, dict[str, Any]] = {}

    def __call__(self, logprobs: list[TokenLogprob]) -> Logprobs:
        """Return the ``logprobs`` of a choice, or of a chunk of one."""
        return {"content": [self._entry(logprob) for logprob in logprobs], "refusal": None}

    def _entry(self, chosen: TokenLogprob) -> dict[str, Any]:
        top = [self._token_entry(token, logprob) for token, logprob in chosen.top]
        return self._token_entry(chosen.token, chosen.logprob) | {"top_logprobs": top}

    def _token_entry(self, token: int, logprob: float) -> dict[str, Any]:
        if token not in self._token_texts:
            self._token_texts[token] = self._text_and_bytes(token)
        return self._token_texts[token] | {"logprob": logprob}

    def _text_and_bytes(self, token: int) -> dict[str, Any]:
        """Return text and bytes; part of a character has no text and is shown as its bytes."""
        text = self._text(token)
        if REPLACEMENT_CHARACTER not in text:
            return {"token": text, "bytes": list(text.encode())}
        token_bytes = _token_bytes(str(self._tokenizer.convert_ids_to_tokens(token)))
        if token_bytes is None:
            return {"token": text, "bytes": None}
        escaped = "".join(f"\\x{byte:02x}" for byte in token_bytes)
        return {"token": f"bytes:{escaped}", "bytes": list(token_bytes)}

    def _text(self, token: int) -> str:
        """Return what the token adds after another one: at the start of a text some tokenizers drop
        a token's leading space."""
        return self._decode([token, token])[len(self._decode([token])) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _token_bytes(piece: str) -> bytes | None:
    """Return the bytes of a token as the vocabulary writes it, None where they cannot be read.

    Byte fallback writes ``<0xE2>`` (SentencePiece), byte-level BPE one character a byte (GPT-2).
    """
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    if piece and all(character in CHAR_TO_BYTE for character in piece):
        return bytes(CHAR_TO_BYTE[character] for character in piece)
    return None
