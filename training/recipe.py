"""Reads the recipe, every number that shapes an adapter, from ``[training]`` of talkback.toml.

    [training]
    seed = 7
    [training.sft]                # any field of trl.SFTConfig, as it stands there
    learning_rate = 3e-4
    [training.dpo]                # any field of trl.DPOConfig
    beta = 0.2

The LoRA shape is no part of it: it is the same for every adapter (chatbot/model/lora.py).
"""

import dataclasses
import difflib
import json
import math
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator

from feedback.settings import Settings, SettingsError

ConfigT = TypeVar("ConfigT")


def learning_rate(parameters: int) -> float:
    """Return SFT's learning rate for a base of so many parameters: measured on those below 200
    million (docs/learning.md), beyond 2 billion that of QLoRA (arXiv:2305.14314, table 9)."""
    if parameters < 2_000_000_000:
        return 5e-4
    return 2e-4 if parameters < 20_000_000_000 else 1e-4


JOB_ARGUMENTS = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "push_to_hub": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,
}
"""What the job sets itself: log every step, write nothing but the adapter."""

SFT_DEFAULTS = {
    "num_train_epochs": 20,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "max_grad_norm": 1.0,
    "max_length": 1024,
    "activation_checkpointing": False,
    "dataloader_pin_memory": False,
}
"""Our defaults for ``[training.sft]``, besides its learning rate."""

SFT_BATCH_BY_BASE = 4
"""Rows a step where the base's own answers are replayed: on a CPU a step of half as many takes half
as long, and as many epochs of them teach more (docs/learning.md)."""

DPO_DEFAULTS = {
    "num_train_epochs": 1,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "max_length": 1024,
    "activation_checkpointing": False,
    "dataloader_pin_memory": False,
    "beta": 0.1,
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 1.0],
}
"""Our defaults for ``[training.dpo]``."""

MAX_FORMS = 40
"""Other forms of questions in an epoch, unless the recipe says how many: where there are more
questions, they vary by themselves."""

ALL_ROWS_TOO_LONG = "every row is longer than max_length ({} tokens); raise it in [training.{}]"


class Recipe(Settings):
    """Holds ``[training]`` of talkback.toml."""

    table: ClassVar[str] = "training"

    seed: int = 0
    """Same snapshot, recipe, seed, versions and threads: the same adapter, bit for bit."""
    threads: int = Field(default=0, ge=0)
    """Threads of the arithmetic; 0 leaves it to OMP_NUM_THREADS, which the cycle sets."""
    max_seconds: float = Field(default=0, ge=0)
    """Stop early and keep what was learnt; 0 never stops. A stop makes a run irreproducible."""
    replay: float | None = Field(default=None, ge=0)
    """Replay rows for each new row of an epoch: they keep what the base can do. Not set: 8, or half
    a row of the base's own answers, each of which has the base's probabilities to learn from."""
    min_replay: int | None = Field(default=None, ge=0)
    """At least so many replay rows in an epoch, however few the new ones are. Not set: 160, or 16
    of the base's own answers."""
    forms: int | None = Field(default=None, ge=0)
    """Of each new question so many other forms are learnt in an epoch beside it: in lower case,
    without a letter or a word, greeted, or only what it is about. Not set: 1, at most 40 in all, or
    none where the base comes with rows of its own to replay, as the starter does."""
    sure: float = Field(default=0.9, gt=0, le=1)
    """SFT ends once each token of each new answer has this probability; 1 goes on to the end."""
    learnt_pairs: bool = False
    """DPO also trains pairs whose chosen answer SFT has made that likely. They teach nothing more,
    and take the model further from its base."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Fields of trl.SFTConfig, beside or instead of our defaults."""
    dpo: dict[str, Any] = Field(default_factory=dict)
    """Fields of trl.DPOConfig, beside or instead of our defaults."""

    @field_validator("sft", "dpo", mode="after")
    @classmethod
    def _parse_numbers(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {key: _parse_number(value) for key, value in values.items()}

    def replay_rows_per_epoch(self, num_new: int, *, by_base: bool = False) -> int:
        """Return how many replay rows an epoch has beside `num_new` new ones; `by_base`: they are
        the base's own answers."""
        default_share, default_least = (0.5, 16) if by_base else (8, 160)
        share = default_share if self.replay is None else self.replay
        least = default_least if self.min_replay is None else self.min_replay
        return max(least, math.ceil(share * num_new))

    def forms_per_epoch(self, num_new: int, *, by_base: bool = False) -> int:
        """Return how many other forms of `num_new` questions an epoch has beside them; `by_base`:
        what is replayed are the base's own answers."""
        if self.forms is not None:
            return self.forms * num_new
        return min(num_new, MAX_FORMS) if by_base else 0


def _parse_number(value: Any) -> Any:
    """Parse a string as JSON where it is JSON: environment variables have no numbers."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def trl_config(
    config_class: type[ConfigT],
    table: str,
    defaults: dict[str, Any],
    overrides: dict[str, Any],
    **job: Any,
) -> ConfigT:
    """Build a config of TRL from our defaults and ``[training.<table>]``.

    Raises SettingsError for a key that TRL does not know, one that the job itself sets, and a
    value that TRL refuses.
    """
    known = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    section = f"[training.{table}] of talkback.toml"
    for key in overrides:
        if key not in known:
            close_matches = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {close_matches[0]!r}?"
                if close_matches
                else f"see the fields of {config_class.__name__}"
            )
            raise SettingsError(f"unknown key {key!r} in {section}; {hint}")
        if key in JOB_ARGUMENTS or key in job:
            raise SettingsError(f"{key!r} in {section} is set by the job itself; leave it out")
    try:
        return config_class(**{**defaults, **overrides, **JOB_ARGUMENTS, **job})
    except (ValueError, TypeError) as error:
        raise SettingsError(f"TRL refuses {section}: {error}") from error
