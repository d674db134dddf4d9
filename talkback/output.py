"""Prints what the commands found: a table for people, or one JSON document for programs.

Other people's text is never markup, and its control characters never reach the terminal:
``SafeConsole`` sees to that for every string that is printed.
"""

import json
import re
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from feedback.curation.curate import Curation
from feedback.review.queue import QueueItem
from talkback.cycle_history import Outcome

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and line feed, and lone surrogates, which no terminal can show."""


def escape_control(text: str) -> str:
    """Return the text with its control characters written out: ``\\x1b`` for an escape."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def styled(*parts: str | tuple[str, str]) -> Text:
    """Join texts, some of them with a style: ``styled(("train", "bold"), " step 3")``."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((escape_control(text), style) for text, style in pairs))


class SafeConsole(Console):
    """Prints every string as it stands, without markup, highlighting or control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a string; rich calls it for what is printed, in tables and titles too."""
        return super().render_str(escape_control(text), **options)


console = SafeConsole()
stderr = SafeConsole(stderr=True)


def show_outcome(outcome: Outcome) -> None:
    """Print how the cycle ended, why, and where the report is."""
    console.print(styled((outcome.kind, "bold"), f": {outcome.detail}"))
    for reason in outcome.reasons:
        console.print(f"  · {reason}")
    if outcome.report:
        console.print(f"  report: {outcome.report}")


def describe_value(value: object) -> str:
    """Return a value of the status as people read it."""
    if value is None:
        return "none yet"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {part}" for name, part in value.items())
    return str(value)


def show_curation(curation: Curation, as_json: bool) -> None:
    """Print the rows that would train, and why the others would not."""
    if as_json:
        print(json.dumps(asdict(curation)))
        return
    rows = Table("kind", "side", "question", "answer", title="would train or be held out")
    for row in curation.rows:
        rows.add_row(row.kind, row.side, row.prompt[-1]["content"], row.chosen)
    dropped = Table("answer", "why not", "text", title="would not train")
    for drop in curation.dropped:
        dropped.add_row(drop.message_id, drop.reason, drop.text)
    console.print(rows, dropped)


def show_rows(rows: list[dict[str, Any]], as_json: bool, empty_message: str) -> None:
    """Print rows as JSON or as a table with their keys as columns; `empty_message` for no rows."""
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        console.print(empty_message)
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(", ".join(v) if isinstance(v, list) else str(v) for v in row.values()))
    console.print(table)


def show_queue(items: list[QueueItem], as_json: bool) -> None:
    """Print the review queue, most urgent first."""
    rows = [_json_item(item) if as_json else _table_item(item) for item in items]
    show_rows(rows, as_json, "Nothing waits for a reviewer.")


def _table_item(item: QueueItem) -> dict[str, Any]:
    return {
        "message": item.answer.id,
        "why": item.why,
        "question": item.question,
        "answer": item.answer.content,
        "finish": item.finish,
        "edits": [f"{' and '.join(one.people)}: {one.text}" for one in item.proposals],
    }


def _json_item(item: QueueItem) -> dict[str, Any]:
    return _table_item(item) | {
        "proposed": item.proposed,  # the newest of the edits
        "edits": [{"people": one.people, "text": one.text} for one in item.proposals],
        "version": item.version,
    }
