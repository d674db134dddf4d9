"""Translates TensorZero's ``POST /feedback``: clients of its gateway can send feedback here.

Shape: https://www.tensorzero.com/docs/gateway/api-reference/feedback
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from chatbot.api.errors import ApiError
from chatbot.api.fields import Identifier, Label
from feedback.messages import Message, NotFoundError
from feedback.store import Store

THUMB_METRICS = ("thumb", "thumbs_up")
"""Names of the boolean metric whose true is a thumb up. Of any other metric it is not known which
of its ends is the good one."""

TENSORZERO_EXAMPLE: JsonDict = {"inference_id": "msg-…", "metric_name": "thumbs_up", "value": True}


class TensorZeroFeedback(BaseModel):
    """Holds one piece of feedback: on an answer (``inference_id`` is the message's id), or on the
    last answer of a conversation (``episode_id`` is the conversation's).

    Of the tags ``user`` (the person) and ``idempotency_key`` are read; others are ignored.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [TENSORZERO_EXAMPLE]})

    metric_name: Identifier
    """``thumb`` or ``thumbs_up`` (true or false), ``comment`` or ``demonstration`` (a text)."""
    value: bool | float | str
    inference_id: Identifier | None = None
    episode_id: Identifier | None = None
    tags: dict[Label, Label] | None = None
    dryrun: bool | None = False
    """Check it and store nothing; the id in the response names nothing."""

    def tag(self, name: str) -> str | None:
        """Return the value of one tag, None when it is missing or empty."""
        return (self.tags or {}).get(name) or None

    def find_answer(self, store: Store) -> Message:
        """Return the answer that this is about; NotFoundError when there is none."""
        if (self.inference_id is None) == (self.episode_id is None):
            raise ApiError(400, "name either inference_id or episode_id", param="inference_id")
        if self.inference_id is not None:
            return store.message(self.inference_id)
        conversation_id = store.conversation(str(self.episode_id)).id
        answers = [
            message for message in store.messages(conversation_id) if message.role == "assistant"
        ]
        if not answers:
            raise NotFoundError(f"{conversation_id} has no answer yet")
        return answers[-1]

    def kind_and_value(self) -> tuple[str, dict[str, Any]]:
        """Return the kind of feedback that the metric is here, and its value; ApiError (400)."""
        if self.metric_name in THUMB_METRICS:
            return "thumb", {"up": self._typed_value(bool, "true or false")}
        if self.metric_name == "comment":
            return "comment", {"text": self._typed_value(str, "a text")}
        if self.metric_name == "demonstration":
            if self.inference_id is None:
                message = "a demonstration is of one answer; name it with inference_id"
                raise ApiError(400, message, param="inference_id")
            return "edit", {"text": self._typed_value(str, "a text")}
        known = ", ".join([*THUMB_METRICS, "comment", "demonstration"])
        message = f"there is no metric {self.metric_name!r}; there are {known}"
        raise ApiError(400, message, param="metric_name", code="unknown_metric")

    def _typed_value(self, kind: type, wanted: str) -> object:
        if not isinstance(self.value, kind):
            message = f"the value of {self.metric_name} is {wanted}, not {self.value!r}"
            raise ApiError(400, message, param="value")
        return self.value
