"""The root of every error that is its reader's to mend: the command line shows it as one line."""


class TalkbackError(Exception):
    """Bad input or a missing thing; the message names the value and the remedy."""
