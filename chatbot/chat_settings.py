"""Holds the ``[chat]`` table of settings.toml: how the bot speaks, and what its page offers."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from feedback.settings import Settings

DEFAULT_THINKING = 2048
"""Most tokens of a thought where thinking is on and nobody says how long it may be."""


def _parse_thinking(value: object) -> object:
    """Return what `ChatSettings.thinking` may be; raise ValueError for anything else."""
    if value in ("off", "on"):
        return value
    if isinstance(value, bool) or not str(value).isdecimal() or int(str(value)) < 1:
        raise ValueError('write "off", "on" or the most tokens of a thought')
    return int(str(value))


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
    thinking: Annotated[Literal["off", "on"] | int, BeforeValidator(_parse_thinking)] = "off"
    """Whether a base that can think does so before it answers; a number is the most tokens of a
    thought, apart from `max_tokens`. What reaches it is cut, and the answer follows."""
    welcome: str = ""
    """What an empty chat invites to ask; empty: anything, or what the starter model knows."""
    examples: list[str] = Field(default_factory=list)
    """Questions that an empty chat offers to click on."""
    approved_answers: bool = True
    """Whether a question that has an approved answer gets it as it stands."""
    approved_similarity: Annotated[float | None, Field(gt=0, le=1)] = None
    """Whether a question so similar to one that has an approved answer gets it as it stands too, 1
    being the same; not set: none. `talkback similar` shows what that would have done."""
    exemplars: Annotated[int, Field(ge=0, le=10)] = 3
    """At most so many approved answers to similar questions go into the prompt; 0: none."""
    choice_every: Annotated[int, Field(ge=0)] = 0
    """Every so many answers, two are offered to choose from; 0: never."""

    @property
    def max_thinking(self) -> int:
        """Return the most tokens of a thought; 0: none."""
        if isinstance(self.thinking, int):
            return self.thinking
        return DEFAULT_THINKING if self.thinking == "on" else 0
