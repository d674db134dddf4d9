"""Defines the base class of errors that a user can mend; the CLI shows them as one line."""


class TalkbackError(Exception):
    """Reports bad input or something missing; the message names the value and the remedy."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, which may run over many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
