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
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    """0 always takes the likeliest token. Not set, this and the four after it: as the base's
    generation_config.json says, which the starter's leaves at 0."""
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    """Only the likeliest tokens that have so much probability together; 1: all."""
    top_k: Annotated[int | None, Field(ge=0)] = None
    """Only so many of the likeliest tokens; 0: all."""
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    """Only tokens with at least so much of the likeliest one's probability; 0: all."""
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    """Above 1, tokens that were there already become less likely."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """Most tokens of one answer. Not set: a quarter of the context, from 256 to 2048."""
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
