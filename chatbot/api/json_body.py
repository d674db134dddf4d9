r"""Makes the texts in a request's JSON well-formed, before anything reads them.

A body is parsed here only where it may need it: where it holds a NUL or a surrogate, escaped
(``\ud83d``) or as bytes, or more brackets than it may be deep.
"""

import json
import re

from chatbot.api.errors import ApiError
from feedback.db.well_formed import all_well_formed

MAX_DEPTH = 100
"""How deeply arrays and objects may be nested: deeper than any client needs, and far from where
Python's recursion ends."""
# Every JSON text in UTF-16 or UTF-32 has NUL bytes, so these are found in all encodings.
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]|\x00")


def clean_json(body: bytes) -> bytes:
    """Return the body with well-formed texts; one that is not JSON as it is. ApiError (400) where
    it is nested too deeply."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets <= MAX_DEPTH and not _SUSPECT.search(body):
        return body
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError:
        return body  # a form or a file; whoever wants JSON refuses it
    if brackets > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    return json.dumps(all_well_formed(value)).encode() if _SUSPECT.search(body) else body


def _is_deeper(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(part, depth - 1) for part in parts)


def _too_deep() -> ApiError:
    return ApiError(400, f"the body is nested more than {MAX_DEPTH} levels deep; send less")
