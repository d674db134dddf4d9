"""A turn of talk in one step, for tests that need not tell asking from keeping."""

from typing import Any

from chatbot.service import Service
from chatbot.turn import Turn, ask


def reply(service: Service, *where: Any, **how: Any) -> Turn:
    """Ask, and have the question stored."""
    return ask(service, *where, **how).begin()
