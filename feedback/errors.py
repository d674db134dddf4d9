"""Defines the base class of errors that a user can mend; the CLI shows them as one line."""


class TalkbackError(Exception):
    """Reports bad input or something missing; the message names the value and the remedy."""
