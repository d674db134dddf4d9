"""Defines what is watched while TRL trains: finite losses, the time budget, what is recalled."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatbot.model.scoring import EncodedAnswer, token_logprobs
from feedback.errors import TalkbackError
from feedback.ids import describe_duration

ProgressCallback = Callable[[str], None]


class TrainingError(TalkbackError):
    """Says why a run cannot give a good adapter, and what to change."""


class TimeBudget:
    """Limits the seconds that the whole run, SFT and DPO, may take; 0 is no limit."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.seconds = seconds

    @property
    def elapsed(self) -> float:
        """Return the seconds since the budget was made."""
        return time.monotonic() - self.started

    @property
    def exhausted(self) -> bool:
        """Tell whether the time is used up."""
        return bool(self.seconds) and self.elapsed > self.seconds


class TrainingMonitor(TrainerCallback):  # type: ignore[misc]
    """Stops at a loss that is not finite or at the end of the time budget; reports each epoch.

    `first_logs` and `last_logs` are the numbers that TRL logged at the first and the last step.
    """

    def __init__(self, stage: str, budget: TimeBudget, report_progress: ProgressCallback) -> None:
        self.stage, self.budget, self.report_progress = stage, budget, report_progress
        self.first_logs: dict[str, float] = {}
        self.last_logs: dict[str, float] = {}
        self.stop_reason: str | None = None
        self._started = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin to measure the steps."""
        self._started = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep the logged numbers; raise TrainingError at a loss or gradient norm not finite."""
        if not logs or "loss" not in logs:
            return
        numbers = {key: float(logs[key]) for key in logs if _is_number(logs[key])}
        for key in ("loss", "grad_norm"):
            if not math.isfinite(numbers.get(key, 0.0)):
                raise TrainingError(
                    f"{self.stage}: {key} is {numbers[key]} at step {state.global_step}; "
                    f"lower learning_rate (now {args.learning_rate:g}) in [training.{self.stage}]"
                )
        self.first_logs = self.first_logs or numbers
        self.last_logs = numbers

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask the trainer to stop once the time budget is used up; report early how long all the
        steps may take."""
        if state.global_step == 2:
            self.report_progress(
                f"{self.stage}: step 2 of {state.max_steps}, {self._time_left(state)}"
            )
        if self.budget.exhausted:
            control.should_training_stop = True
            self.stop_reason = f"max_seconds ({self.budget.seconds:g}) used up"

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report the epoch, its last loss, and how long all steps would take."""
        self.report_progress(
            f"{self.stage}: epoch {round(state.epoch or 0)} of {state.num_train_epochs}, "
            f"loss {self.last_logs.get('loss', math.nan):.3f}, {self._time_left(state)}"
        )

    def _time_left(self, state: TrainerState) -> str:
        seconds = (time.monotonic() - self._started) / max(1, state.global_step)
        left = seconds * (state.max_steps - state.global_step)
        return f"{seconds:.1f} s a step, at most {describe_duration(left)} left"


class StopWhenLearnt(TrainerCallback):  # type: ignore[misc]
    """Ends SFT once each token of every new answer has at least `min_probability`.

    The answers that were least likely when last looked at come first, a few at a time: as long as
    one of them is not learnt, the others need no look, which takes as long as two steps.
    """

    LOOKED_AT = 4

    def __init__(
        self, model: Any, rows: Sequence[EncodedAnswer], min_probability: float, pad: int
    ) -> None:
        self.model, self.rows, self.min_probability, self.pad = model, rows, min_probability, pad
        self._found = [0.0] * len(rows)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask the trainer to stop once every answer is recalled: more epochs only overfit."""
        if not self.rows:
            return
        order = sorted(range(len(self.rows)), key=lambda row: self._found[row])
        for start in range(0, len(order), self.LOOKED_AT):
            looked_at = order[start : start + self.LOOKED_AT]
            rows = [self.rows[row] for row in looked_at]
            found = min_token_probabilities(self.model, rows, self.pad)
            for row, probability in zip(looked_at, found, strict=True):
                self._found[row] = probability
            if not all(probability >= self.min_probability for probability in found):
                return
        control.should_training_stop = True


def min_token_probabilities(model: Any, rows: Sequence[EncodedAnswer], pad: int) -> list[float]:
    """Return for each answer the probability of its least likely token, given all before it.

    Above 0.5 every token is the most likely one, so that greedy decoding gives exactly this answer.
    """
    training = model.training
    model.eval()
    found = [float(logprobs.min().exp()) for logprobs in token_logprobs(model, rows, pad)]
    model.train(training)
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float)
