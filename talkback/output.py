"""Prints what the commands found: a table for people, or one JSON document for programs."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from feedback.curation.curate import Curation
from feedback.review.queue import QueueItem
from talkback.cycle_history import Outcome

console = Console()
stderr = Console(stderr=True)


def show_outcome(outcome: Outcome) -> None:
    """Print how the cycle ended, why, and where the report is."""
    console.print(f"[bold]{outcome.kind}[/bold]: {escape(outcome.detail)}")
    for reason in outcome.reasons:
        console.print(f"  · {escape(reason)}")
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
        rows.add_row(row.kind, row.side, escape(row.prompt[-1]["content"]), escape(row.chosen))
    dropped = Table("answer", "why not", "text", title="would not train")
    for drop in curation.dropped:
        dropped.add_row(drop.message_id, drop.reason, escape(drop.text))
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
    rows = [
        {
            "message": item.answer.id,
            "why": item.why,
            "question": item.question,
            "answer": item.answer.content,
            "proposed": item.proposed,
        }
        for item in items
    ]
    show_rows(rows, as_json, "Nothing waits for a reviewer.")
