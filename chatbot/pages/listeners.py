"""Holds the options that the pages' Gradio event listeners share.

`api_visibility` only hides a listener from the documentation of the API: it closes none, see
`LoginForm`.
"""

from typing import Any

Changes = dict[Any, Any]
"""What a handler returns: a component -> its new value, or a `gr.update` of it."""

# Streams wait in the engine's own queue, which knows when it is full: Gradio's must not hold them.
LISTENER = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
CONCURRENT = {**LISTENER, "trigger_mode": "multiple"}
"""Also while an earlier event of the same browser is still being handled."""
# What happens often or at once goes past the queue, whose bookkeeping costs more than the work.
UNQUEUED = {**CONCURRENT, "queue": False}
