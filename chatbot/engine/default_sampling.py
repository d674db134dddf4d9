"""Decides how answers are sampled where a request does not say: as the settings, else the base."""

import logging
import math

from transformers import GenerationConfig

from chatbot.chat_settings import ChatSettings
from chatbot.engine.protocol import Sampling
from chatbot.model.base import Base
from chatbot.model.thought_format import find_thought_format

log = logging.getLogger("talkback")

MIN_ANSWER_TOKENS, MAX_ANSWER_TOKENS = 256, 2048
"""An answer may take a quarter of the context, within these limits."""

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0.01, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
}
"""The parameters that a base's generation_config.json may set, and what they may be."""


def default_sampling(chat: ChatSettings, base: Base, context_length: int) -> Sampling:
    """Return the sampling of answers for which nobody asks for another.

    What ``[chat]`` sets wins over the base's generation_config.json. A base that does not ask for
    sampling (``do_sample``) answers greedily.
    """
    limit = min(max(context_length // 4, MIN_ANSWER_TOKENS), MAX_ANSWER_TOKENS)
    found = {"max_tokens": limit, **_sampling_of(base.model.generation_config, base.name)}
    names = ("max_tokens", *RANGES)
    configured = {name: getattr(chat, name) for name in names if getattr(chat, name) is not None}
    thinking = thinking_budget(base, chat.max_thinking)
    return Sampling(**{**found, **configured}, thinking=thinking)


def thinking_budget(base: Base, wanted: int) -> int:
    """Return the most tokens of a thought: as many as wanted, of a base that can think."""
    return wanted if find_thought_format(base.tokenizer) is not None else 0


def _sampling_of(config: GenerationConfig | None, base_name: str) -> dict[str, float]:
    """Return the parameters that a base asks for, without those that are no possible value."""
    names = list(RANGES) if config is not None and config.do_sample else ["repetition_penalty"]
    found = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    if "temperature" in names:
        found.setdefault("temperature", 1.0)  # as transformers samples where a config has none
    for name, value in list(found.items()):
        low, high = RANGES[name]
        if not isinstance(value, int | float) or not low <= value <= high:
            log.warning("%s of %s is %r, which is passed over", name, base_name, found.pop(name))
    return found
