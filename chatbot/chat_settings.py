"""Holds the ``[chat]`` table of settings.toml: how the bot speaks, and what its page offers."""

from typing import Annotated, ClassVar

from pydantic import Field

from feedback.settings import Settings


class ChatSettings(Settings):
    """Holds ``[chat]``: how the bot speaks, and what its page offers."""

    table: ClassVar[str] = "chat"

    title: str = "Talkback"
    """The bot's name on the page."""
    system_prompt: str = ""
    """The system prompt of every conversation; empty: none."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the likeliest token."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Most tokens of one answer."""
    welcome: str = ""
    """What an empty chat invites to ask; empty: anything, or what the starter model knows."""
    examples: list[str] = Field(default_factory=list)
    """Questions that an empty chat offers to click on."""
    approved_answers: bool = True
    """Whether a question that has an approved answer gets it as it stands."""
    exemplars: Annotated[int, Field(ge=0, le=10)] = 3
    """At most so many approved answers to similar questions go into the prompt; 0: none."""
    choice_every: Annotated[int, Field(ge=0)] = 0
    """Every so many answers, two are offered to choose from; 0: never."""
