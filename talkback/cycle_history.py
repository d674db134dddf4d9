"""Records how cycles began and ended, and answers what earlier ones judged or failed at."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from feedback.ids import new_id, now
from feedback.store import Store

OutcomeKind = Literal[
    "busy", "nothing to do", "promoted", "refused", "not enough evidence", "overtaken", "failed"
]
"""Overtaken: the gate would have promoted, but another promotion was made since the comparison
began."""
VERDICT_OUTCOMES: dict[str, OutcomeKind] = {
    "promote": "promoted",
    "refuse": "refused",
    "not_enough_evidence": "not enough evidence",
}
"""The gate's verdict -> the outcome of the cycle that got it."""
_JUDGED = tuple(VERDICT_OUTCOMES.values())
_MARKS = ", ".join("?" * len(_JUDGED))
Revisions = Collection[str | None]
"""All revisions of one base."""


@dataclass(frozen=True)
class Outcome:
    """Tells how a cycle ended, and why; `seconds` maps each stage to its duration."""

    kind: OutcomeKind
    detail: str
    snapshot: str | None = None
    adapter: str | None = None
    report: str | None = None
    reasons: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Return 0 for every normal outcome: cron mails on failures only."""
        return int(self.kind == "failed")


class CycleHistory:
    """Reads and writes the tables `cycle` (a row when training begins) and `cycle_end`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def begin(self, snapshot_id: str, base_revision: str | None) -> str:
        """Record that training on a snapshot begins, and for which base; return the cycle's id."""
        cycle_id = new_id("cyc")
        with self.store.write() as db:
            row = {"id": cycle_id, "snapshot": snapshot_id, "started_at": now()}
            db.insert("cycle", row | {"base_revision": base_revision})
        return cycle_id

    def end(self, cycle_id: str, outcome: Outcome) -> None:
        """Record the outcome. A cycle that was killed never gets here and counts as failed."""
        with self.store.write() as db:
            end = {"cycle_id": cycle_id, "outcome": outcome.kind, "detail": asdict(outcome)}
            db.insert("cycle_end", end | {"ended_at": now()})

    def last_judged_snapshot(self, base_revisions: Revisions) -> str | None:
        """Return the id of the snapshot of the last cycle on a base that came to a verdict."""
        row = self.store.row(
            f"""select snapshot from cycle join cycle_end on cycle_id = id
            where outcome in ({_MARKS}) and base_revision in (select value from json_each(?))
            order by cycle.rowid desc""",
            (*_JUDGED, list(base_revisions)),
        )
        return str(row["snapshot"]) if row else None

    def last_training(self, base_revisions: Revisions) -> tuple[str, float] | None:
        """Return the last snapshot that trained to the end on a base, and in how many seconds."""
        row = self.store.row(
            """select snapshot, json_extract(detail, '$.seconds.train') as seconds
            from cycle join cycle_end on cycle_id = id
            where seconds > 0 and base_revision in (select value from json_each(?))
            order by cycle.rowid desc""",
            (list(base_revisions),),
        )
        return (str(row["snapshot"]), float(row["seconds"])) if row else None

    def has_judged(self) -> bool:
        """Tell whether a cycle came to a verdict yet, on whatever base."""
        sql = f"select 1 from cycle_end where outcome in ({_MARKS})"
        return self.store.row(sql, _JUDGED) is not None

    def count_failed_attempts(self, snapshot_id: str, base_revisions: Revisions) -> int:
        """Count the cycles that trained on this snapshot and this base and never came to a verdict;
        one that was overtaken did, although the next may judge the snapshot again."""
        row = self.store.row(
            f"""select count(*) as n from cycle left join cycle_end on cycle_id = id
            where snapshot = ? and coalesce(outcome, '') not in ({_MARKS}, 'overtaken')
            and base_revision in (select value from json_each(?))""",
            (snapshot_id, *_JUDGED, list(base_revisions)),
        )
        return int(row["n"]) if row else 0

    def last_outcome(self) -> dict[str, Any] | None:
        """Return outcome and end time of the last cycle that trained."""
        row = self.store.row("select outcome, ended_at from cycle_end order by rowid desc")
        return dict(row) if row else None
