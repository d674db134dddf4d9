"""Makes all ids and timestamps.

An id is a prefix, the time and random bits: ``msg-01kav3…`` sorts by when it was made (the layout
is that of a ULID, https://github.com/ulid/spec: 48 bits of milliseconds, 80 random ones, base 32).
"""

import secrets
import time
from datetime import UTC, datetime

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no i, l, o, u, so that an id survives being read aloud."""


def new_id(prefix: str) -> str:
    """Return a new unique id, which sorts after those of earlier milliseconds."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    return f"{prefix}-" + "".join(_DIGITS[number >> shift & 31] for shift in range(125, -1, -5))


def now() -> str:
    """Return the time in UTC as ISO 8601 with milliseconds: ``2026-01-31T09:30:00.123Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def describe_duration(seconds: float) -> str:
    """Return a length of time as people say it: "50 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
