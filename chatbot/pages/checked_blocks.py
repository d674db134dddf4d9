"""Checks what reaches the pages' handlers: each can be called by anybody, with any values.

Gradio prints a traceback for whatever a handler or a component raises, and answers 500 to a call
that passes its queue. Refusals are no faults of the server, so neither happens for them here.
"""

from typing import Any

import gradio as gr
from gradio.exceptions import ComponentProcessingError
from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr, ValidationError

from feedback.errors import TalkbackError, first_line


class BadPageInputError(TalkbackError):
    """Reports values that none of the pages sends."""


class EventFields(BaseModel):
    """Holds what handlers read of a browser's event, beside the values of their components."""

    model_config = ConfigDict(extra="allow")


class EditFields(EventFields):
    """Holds which message was edited, and its new text; Gradio wants the old one too."""

    index: StrictInt
    value: StrictStr
    previous_value: Any


class LikeFields(EventFields):
    """Holds which message got a thumb; ``liked`` is "" for one taken back."""

    index: StrictInt
    value: Any
    liked: StrictBool | StrictStr


class CopyFields(EventFields):
    """Holds the text that was copied."""

    value: StrictStr


class SelectFields(EventFields):
    """Holds the id of the conversation that was picked."""

    index: StrictInt
    value: StrictStr


class ExampleText(BaseModel):
    """Holds the text of an example question."""

    text: StrictStr


class ExampleFields(EventFields):
    """Holds the example question that was picked."""

    index: StrictInt
    value: ExampleText


EVENT_FIELDS: dict[str, type[EventFields]] = {
    "edit": EditFields,
    "like": LikeFields,
    "copy": CopyFields,
    "example_select": ExampleFields,
    "select": SelectFields,
}
"""The events whose data our handlers read, by Gradio's names."""

UNCHANGED = {"__type__": "update"}
"""Leaves a component as it is, as `gr.skip` does."""


class CheckedBlocks(gr.Blocks):
    """Refuses calls with values that no page sends, or by people who may not."""

    async def process_api(self, block_fn: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a handler. People read why a call is refused; one past the queue has no effect."""
        block_fn = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        try:
            _check_event(block_fn, kwargs.get("event_data"))
            return await super().process_api(block_fn, inputs, *args, **kwargs)
        except TalkbackError as error:
            if block_fn.queue:
                raise gr.Error(str(error), print_exception=False) from error
            unchanged = [UNCHANGED for _ in block_fn.outputs]
            return {"data": unchanged, "is_generating": False, "iterator": None}

    async def preprocess_data(self, block_fn: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the handler gets of each component; BadPageInputError."""
        try:
            values = await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except (gr.Error, ComponentProcessingError, ValueError, TypeError) as error:
            raise BadPageInputError(
                f"The page sent something else than it should ({first_line(error)}). Reload it."
            ) from error
        return [
            "" if value is None and isinstance(block, gr.Textbox) else value
            for block, value in zip(block_fn.inputs, values, strict=True)
        ]


def _check_event(block_fn: Any, event_data: Any) -> None:
    for _, name in block_fn.targets:
        fields = EVENT_FIELDS.get(name)
        if fields is None:
            continue
        try:
            fields.model_validate(getattr(event_data, "_data", None))
        except ValidationError as error:
            raise BadPageInputError(
                f"The page sent an event {name!r} of another shape. Reload it."
            ) from error
