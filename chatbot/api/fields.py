"""Defines the texts in requests: names and ids are short and whole, others have a limit."""

from typing import Annotated

from pydantic import AfterValidator, Field

from feedback.db.well_formed import REPLACEMENT
from feedback.kinds import MAX_TEXT_LENGTH

MAX_IDENTIFIER_LENGTH = 256
MAX_LABEL_LENGTH = 512
"""Characters of a value of ``metadata``, as at OpenAI, and of a tag."""


def _check_whole(text: str) -> str:
    """Refuse what `to_well_formed` has replaced: two names must not become one."""
    if REPLACEMENT in text:
        raise ValueError("it holds half a character (a lone surrogate) or a NUL; send it whole")
    return text


Identifier = Annotated[str, Field(max_length=MAX_IDENTIFIER_LENGTH), AfterValidator(_check_whole)]
"""Names a person, a message, a model, a key."""
Label = Annotated[str, Field(max_length=MAX_LABEL_LENGTH)]
LimitedText = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
"""Holds what a person wrote to be kept."""
