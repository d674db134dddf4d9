"""Who may review and operate: whoever has the review token, asked for in every single handler.

Gradio's `api_visibility` hides a handler, it closes none: each can be called by anybody who reaches
the server, so no handler of these pages reads or writes anything before `require` has let it pass.
"""

import hmac
from typing import TYPE_CHECKING

from feedback.errors import TalkbackError

if TYPE_CHECKING:
    from chatbot.service import Service


class Refused(TalkbackError):
    """The review token is missing or wrong."""

    def __init__(self) -> None:
        super().__init__("This needs the review token, which the server printed at its start.")


def allowed(service: "Service", token: object) -> bool:
    """Whether this token opens the pages; on a server without one, everything does."""
    given = token if isinstance(token, str) else ""
    right = service.review_token
    return not right or hmac.compare_digest(given.encode(), right.encode())


def require(service: "Service", token: object) -> None:
    """Refused, unless the token opens the pages."""
    if not allowed(service, token):
        raise Refused
