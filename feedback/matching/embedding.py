"""Embeds texts as vectors that lie near each other where the texts mean about the same.

    embedder = load_static_embedder()
    order, purchase, weather = embedder.embed(["cancel my order", "undo a purchase", "rain?"])
    order @ purchase > order @ weather

A text's vector is the mean of its tokens' vectors, which the wheel of wordllama has: 32,000 tokens
of Llama 2, trained for that mean. It takes neither a model nor the Hub, and 0.03 ms a text.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from feedback.db.well_formed import to_well_formed
from feedback.errors import TalkbackError
from feedback.similarity import normalise_text

Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]

MAX_LENGTH = 2000
"""So many characters of a text are embedded; what it is about is clear by then."""
STATIC_THRESHOLD = 0.43
"""Score from which an approved answer is an exemplar, as bench_exemplars.py measures it."""

_LEAST_KNOWN = 0.5
"""Of a text's letters at least so many must be in tokens that mean something. Of Thai, Arabic or
Greek the tokens are single letters: any two texts would be near."""
_SYLLABLES = 0.05
"""By so much a vector of Chinese characters or Korean syllables alone is shorter: the commonest of
them are in texts about anything."""
_SYLLABLE_SCRIPTS = ("CJK UNIFIED", "HANGUL")
_WORD_SCRIPTS = ("LATIN", "CYRILLIC", *_SYLLABLE_SCRIPTS)
"""A single letter of these is a word, or part of one whose other parts are known."""


class EmbedderError(TalkbackError):
    """Reports an embedder that gives no vectors, with the reason."""


class Embedder(Protocol):
    """Embeds texts; ``name`` tells its vectors from those of every other."""

    name: str
    threshold: float
    """The score from which an approved answer is an exemplar, see `feedback.exemplars`."""
    batch_size: int
    """How many texts are embedded at once where many wait."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors of length 1 or a bit less, shape (texts, dimensions); zeros for a text
        that it knows nothing of. Raise EmbedderError."""

    def close(self) -> None:
        """Close what it holds open."""


class StaticEmbedder:
    """Embeds a text as the mean of its tokens' vectors."""

    name = "wordllama-l2-256"
    threshold = STATIC_THRESHOLD
    batch_size = 256

    def __init__(self) -> None:
        """Read the two files, in a quarter of a second; raise EmbedderError without them."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        # The package itself is not imported: it sets up logging, and looks for files on the Hub.
        spec = find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise EmbedderError("the package wordllama is missing; pip install wordllama")
        folder = Path(spec.submodule_search_locations[0])
        try:
            self._tokens = load_file(folder / "weights/l2_supercat_256.safetensors")[
                "embedding.weight"
            ]
            self._tokenizer = Tokenizer.from_file(
                str(folder / "tokenizers/l2_supercat_tokenizer_config.json")
            )
        except Exception as error:  # tokenizers raises no narrower one
            raise EmbedderError(
                f"cannot read the vectors in {folder}: {error}; install wordllama 0.4 anew"
            ) from error
        pieces = [self._tokenizer.id_to_token(n) or "" for n in range(len(self._tokens))]
        self._weights = np.array([_count_letters(piece) for piece in pieces], np.float32)
        """How many letters each token has."""
        self._known = np.array([_is_known(piece) for piece in pieces])
        self._syllables = np.array([_is_syllable(piece) for piece in pieces])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors of length 0.95 to 1, or zeros, shape (texts, 256)."""
        return np.array([self._embed(text) for text in texts], np.float32).reshape(
            len(texts), self._tokens.shape[1]
        )

    def close(self) -> None:
        """Close nothing: both files have been read."""

    def _embed(self, text: str) -> Vector:
        encoding = self._tokenizer.encode(
            normalise_text(to_well_formed(text[:MAX_LENGTH])), add_special_tokens=False
        )
        ids = np.array(encoding.ids, np.int64)
        known = ids[self._known[ids]]
        weights = self._weights[known]
        letters, all_letters = weights.sum(), self._weights[ids].sum()
        if not len(known) or letters < _LEAST_KNOWN * all_letters:
            return np.zeros(self._tokens.shape[1], np.float32)
        single = self._syllables[known].sum() / max(letters, 1)
        vector: Vector = to_units(self._tokens[known].sum(axis=0, dtype=np.float32)[None])[0]
        return np.asarray(vector * (1 - _SYLLABLES * single), np.float32)


def to_units(vectors: Vectors) -> Vectors:
    """Return the vectors scaled to length 1, shape (texts, dimensions); zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


@cache
def load_static_embedder() -> StaticEmbedder:
    """Return the embedder that is always there; raise EmbedderError where its files are not."""
    return StaticEmbedder()


def _count_letters(piece: str) -> float:
    """Return how many letters a token has; a byte is a third of one. Hiragana does not count: in
    Japanese it is the inflections, not what a text is about."""
    if _is_byte(piece):
        return 1 / 3
    return sum(
        unicodedata.category(mark)[0] in "LM" and not "\u3041" <= mark <= "\u309f" for mark in piece
    )


def _is_known(piece: str) -> bool:
    """Tell whether a token says something: two letters or more, a number, a word's only letter."""
    marks = piece.strip("\N{LOWER ONE EIGHTH BLOCK}")
    if not marks or _is_byte(piece) or piece == "<unk>":
        return False
    kinds = [unicodedata.category(mark)[0] for mark in marks]
    letters = [mark for mark, kind in zip(marks, kinds, strict=True) if kind in "LM"]
    if len(letters) == 1:
        return unicodedata.name(letters[0], "").startswith(_WORD_SCRIPTS)
    return bool(letters) or not set(kinds) <= {"P"}


def _is_syllable(piece: str) -> bool:
    return len(piece) == 1 and unicodedata.name(piece, "").startswith(_SYLLABLE_SCRIPTS)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x")
