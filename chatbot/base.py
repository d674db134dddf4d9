"""The base model: loading it, and the one way in which messages become its tokens.

Training imports this very module, so what is trained is what is served.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from feedback.errors import TalkbackError

STARTER = str(Path(__file__).parent / "starter")
"""The default base: the small model that comes with the package."""

Messages = Sequence[Mapping[str, str]]
DType = Literal["auto", "float32", "bfloat16"]


class BaseError(TalkbackError):
    """The base model cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Base:
    """A loaded base: `revision` is the commit or content hash, `fingerprint` its architecture."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    fingerprint: str


def load_base(name: str = STARTER, revision: str | None = None, *, dtype: DType = "auto") -> Base:
    """Load a local folder or a Hub id; any causal LM of transformers with safetensors."""
    raise NotImplementedError


def load_tokenizer(name: str = STARTER, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer alone, with pad token and chat template ensured."""
    raise NotImplementedError


def plain(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with every control token's string broken, so that it can only be read as text."""
    raise NotImplementedError


def render(
    base: Base | PreTrainedTokenizerBase, messages: Messages, *, answer: str | None = None
) -> str:
    """The prompt as the model sees it, generation prompt included; contents made `plain`.

    With `answer`: the prompt followed by that answer and the template's end of turn.
    """
    raise NotImplementedError


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """The token ids of `render(tokenizer, messages)`."""
    raise NotImplementedError
