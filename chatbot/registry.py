"""Records which adapters there are, which one is in service, and why; rows are never changed.

    registry = Registry(store, home)
    registry.promote("a-3f9c02b1d7e4", by="person", who="ann", reason="reads better")

The newest promotion's adapter is in service; a rollback is a promotion of an older adapter.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chatbot.known_bases import BaseLocation, KnownBases
from chatbot.model.base_name import short_name
from feedback.errors import TalkbackError
from feedback.ids import new_id, now
from feedback.settings import Home
from feedback.store import Store

if TYPE_CHECKING:
    from chatbot.model.base import Base

PromotedBy = Literal["gate", "person", "start"]


class RegistryError(TalkbackError):
    """Says why an adapter is not known, or cannot be registered, promoted or rolled back."""


class PromotionConflictError(RegistryError):
    """Reports that another promotion was made since the one that an operator saw."""


class UnconfirmedPromotionError(RegistryError):
    """Reports that the gate did not find an adapter better, and nobody has confirmed it."""


@dataclass(frozen=True)
class AdapterRow:
    """Holds a registered adapter: its base, and the snapshot, recipe and lineage it comes from."""

    id: str
    parent: str | None
    base: str
    base_revision: str | None
    snapshot: str | None
    recipe: Any
    lineage: Any
    created_at: str


@dataclass(frozen=True)
class Promotion:
    """Holds one decision to put an adapter in service: by the gate, a person or the first start."""

    id: str
    adapter: str
    by: PromotedBy
    who: str
    reason: str
    report: str | None
    created_at: str

    def describe(self) -> str:
        """Return who promoted what, when and why, as a clause."""
        day, time = self.created_at[:10], self.created_at[11:16]
        return f"{self.who} promoted {self.adapter} on {day} at {time} UTC ({self.reason})"


@dataclass(frozen=True)
class ReportRow:
    """Holds the verdict of one evaluation of ``adapter`` against the one in service then."""

    id: str
    adapter: str
    against: str
    verdict: str
    reasons: list[str]
    created_at: str


class Registry:
    """Reads and writes the tables adapter, promotion and report, and finds adapters' folders."""

    def __init__(self, store: Store, home: Home) -> None:
        self._store = store
        self._home = home
        self.bases = KnownBases(store)

    def register(
        self,
        folder: Path,
        *,
        parent: str | None = None,
        snapshot: str | None = None,
        recipe: Mapping[str, Any] | None = None,
        lineage: Any = None,
        base: str | None = None,
        base_revision: str | None = None,
    ) -> str:
        """Add the finished adapter at ``home.adapters/<id>``; return its id.

        What is not given is taken from the folder's manifest.json. The same adapter again changes
        nothing. Raises RegistryError for a folder elsewhere, or named otherwise than its manifest.
        """
        manifest = self._read_manifest(folder)
        row = {
            "id": folder.name,
            "parent": parent,
            "base": base or manifest["base"],
            "base_revision": base_revision or manifest.get("base_revision"),
            "snapshot": snapshot or manifest.get("snapshot"),
            "recipe": json.dumps(recipe or manifest.get("recipe") or {}),
            "lineage": json.dumps(lineage if lineage is not None else {}),
            "created_at": now(),
        }
        with self._store.write() as db:
            self.bases.record_manifest(manifest)
            if self._find(folder.name) is None:
                db.insert("adapter", row)
        return folder.name

    def adapters(self) -> list[AdapterRow]:
        """Return all adapters, newest first."""
        return [
            _adapter_row(row)
            for row in self._store.rows("select * from adapter order by rowid desc")
        ]

    def adapter(self, id: str) -> AdapterRow:
        """Return the adapter of that id; RegistryError if there is none."""
        found = self._find(id)
        if found is None:
            known = ", ".join(a.id for a in self.adapters()[:5]) or "none yet"
            raise RegistryError(f"no adapter {id!r}; the newest are: {known}")
        return found

    def folder(self, id: str) -> Path:
        """Return the folder of an adapter's files."""
        return self._home.adapters / id

    def current(self) -> AdapterRow | None:
        """Return the adapter in service; None before the first start."""
        newest = self.promotion()
        return self.adapter(newest.adapter) if newest else None

    def promotion(self) -> Promotion | None:
        """Return the newest promotion, which decides which adapter speaks."""
        row = self._store.row("select * from promotion order by rowid desc limit 1")
        return Promotion(**row) if row else None

    def history(self) -> list[Promotion]:
        """Return all promotions, newest first."""
        rows = self._store.rows("select * from promotion order by rowid desc")
        return [Promotion(**row) for row in rows]

    def promote(
        self,
        id: str,
        by: PromotedBy,
        who: str,
        reason: str,
        report: str | None = None,
        *,
        seen: str | None = None,
        confirmed: bool = False,
    ) -> Promotion:
        """Put an adapter in service; a running server follows within a second.

        ``seen`` is the newest promotion's id as whoever decides saw it; another one since raises
        PromotionConflictError. An adapter that the gate did not find better takes a person who has
        ``confirmed`` it; else UnconfirmedPromotionError.
        """
        adapter = self.adapter(id)
        made = Promotion(new_id("pro"), id, by, who, reason, report, now())
        with self._store.write() as db:
            self._check_seen(seen)
            if by != "start" and self.current() is not None and not self.same_base(id):
                raise RegistryError(
                    f"{id} belongs to another base, {adapter.base}; start `talkback serve "
                    "--base-model` with that one, and its newest adapter speaks again"
                )
            needs_confirmation = by == "person" and not confirmed
            if needs_confirmation and (objection := self.objection(id)):
                raise UnconfirmedPromotionError(
                    f"{objection}; confirm that it shall speak all the same, with your name and "
                    "a reason"
                )
            db.insert("promotion", vars(made))
        return made

    def rollback(
        self, who: str, reason: str = "rollback", *, seen: str | None = None, once: bool = False
    ) -> Promotion:
        """Promote the adapter that was in service before; again: the one before that.

        With ``seen``, as for `promote`, two who roll back at once go one step back. Without it
        ``once`` raises PromotionConflictError where the newest promotion is a rollback already.
        """
        with self._store.write():
            self._check_seen(seen)
            history = self.history()
            if once and seen is None and self._is_rollback(history):
                newest = history[0]
                raise PromotionConflictError(
                    f"nothing was changed, because that was a rollback already: "
                    f"{newest.describe()}; to go one step further, send {newest.id} as seen"
                )
            served = self.serving_order()
            if len(served) < 2:
                raise RegistryError("there is no earlier adapter to roll back to")
            return self.promote(served[-2], "person", who, reason, confirmed=True)

    def objection(self, id: str) -> str:
        """Return what the newest report has against an adapter, "" for none."""
        report = next(iter(self.reports(id)), None)
        if report is None or report.verdict == "promote":
            return ""
        verdict = report.verdict.replace("_", " ")
        return f"the gate's verdict on {id} is {verdict}: {' '.join(report.reasons)}".strip()

    def _check_seen(self, seen: str | None) -> None:
        newest = self.promotion()
        if seen is not None and newest and newest.id != seen:
            raise PromotionConflictError(
                f"nothing was changed, because {newest.describe()}; "
                "look at it as it is now, then decide again"
            )

    def serving_order(self) -> list[str]:
        """Return the ids of the current base's adapters in the order in which they served.

        A return to an earlier adapter drops the later ones, so that two rollbacks go two steps
        back. The last one is in service.
        """
        return self._served(self.history())

    def _is_rollback(self, history: Sequence[Promotion]) -> bool:
        """Tell whether the newest of these promotions went back to an earlier adapter."""
        return bool(history) and history[0].adapter in self._served(history[1:])[:-1]

    def _served(self, history: Sequence[Promotion]) -> list[str]:
        """Return the serving order after these promotions, of which the newest is the first."""
        if not history:
            return []
        ours = self.bases.revisions(self.adapter(history[0].adapter).base_revision)
        served: list[str] = []
        for id in reversed([promotion.adapter for promotion in history]):
            if self.adapter(id).base_revision in ours:
                served = served[: served.index(id)] if id in served else served
                served.append(id)
        return served

    def add_report(
        self, id: str, *, adapter: str, against: str, verdict: str, reasons: Sequence[str]
    ) -> str:
        """Add the report at ``home.reports/<id>``; return its id."""
        row = {
            "id": id,
            "adapter": adapter,
            "against": against,
            "verdict": verdict,
            "reasons": list(reasons),
            "created_at": now(),
        }
        with self._store.write() as db:
            db.insert("report", row)
        return id

    def reports(self, adapter: str | None = None) -> list[ReportRow]:
        """Return reports, newest first, of one adapter or of all."""
        sql = "select * from report where ?1 is null or adapter = ?1 order by rowid desc"
        return [
            ReportRow(**{**dict(row), "reasons": json.loads(row["reasons"])})
            for row in self._store.rows(sql, (adapter,))
        ]

    def ensure_promoted(self, base: "Base") -> AdapterRow:
        """Promote an adapter of this base unless one is in service; return the one in service.

        After a start on another base it is the last one of this base that served; else adapter
        0, an untrained LoRA equal to the base.
        """
        self._adopt_older(base)
        self.bases.record(base)
        current, ours = self.current(), self.bases.revisions(base.revision)
        if current is not None and current.base_revision in ours:
            return current
        served = (promotion.adapter for promotion in self.history())
        own = next((id for id in served if self.adapter(id).base_revision in ours), None)
        reason = f"first start on {base.name}"
        if current is not None:
            reason = self._describe_change(current, base, own)
        chosen = own or self._register_untrained(base)
        self.promote(chosen, "start", "talkback", reason)
        return self.adapter(chosen)

    def base_change(self) -> Promotion | None:
        """Return the newest promotion if a start on another base made it; its reason says from
        which base to which, and what becomes of what was learnt."""
        match self.history():
            case [newest, before, *_] if newest.by == "start" and not self.same_base(
                before.adapter
            ):
                return newest
        return None

    def same_base(self, id: str) -> bool:
        """Tell whether an adapter belongs to the base in service."""
        return self.adapter(id).base_revision in self._revisions_in_service()

    def locate_base(self, adapter: AdapterRow) -> BaseLocation:
        """Return where the adapter's base is now; UnknownBaseError if it is nowhere."""
        return self.bases.locate(adapter.base, adapter.base_revision)

    def _revisions_in_service(self) -> frozenset[str | None]:
        current = self.current()
        return self.bases.revisions(current.base_revision) if current else frozenset()

    def _adopt_older(self, base: "Base") -> None:
        """Take the adapters of a home from before identities were kept as this base's, if their
        manifest names its weights."""
        from chatbot.model.adapter import is_of_base

        rows = self.adapters()
        if any(row.base_revision in self.bases.revisions(base.revision) for row in rows):
            return
        for row in rows:
            if row.base_revision and self.bases.identity(row.base_revision) is None:
                try:
                    manifest = self._read_manifest(self.folder(row.id))
                except RegistryError:
                    continue  # damaged: it is refused wherever it is used
                if is_of_base(manifest, base):
                    self.bases.adopt(row.base_revision, row.base, base)
                    return

    def _describe_change(self, before: AdapterRow, base: "Base", own: str | None) -> str:
        """Return from which base to which, and what becomes of what was learnt."""
        from chatbot.model.fingerprint import describe_difference

        known = self.bases.identity(before.base_revision) or ""
        goes_on = (
            f"its own adapter {own} goes on" if own else "cycles learn all approved answers anew"
        )
        return (
            f"the base changed from {short_name(before.base)} to {short_name(base.name)} "
            f"({describe_difference(known, base.identity)}): {goes_on}; what was learnt on the "
            "former base is kept, and goes on when that is served again"
        )

    def _register_untrained(self, base: "Base") -> str:
        from chatbot.model.untrained import write_untrained

        folder = write_untrained(base, self._home.adapters)
        return self.register(folder, base=base.name, base_revision=base.revision)

    def _find(self, id: str) -> AdapterRow | None:
        row = self._store.row("select * from adapter where id = ?", (id,))
        return _adapter_row(row) if row else None

    def _read_manifest(self, folder: Path) -> dict[str, Any]:
        if folder.resolve().parent != self._home.adapters:
            raise RegistryError(f"{folder} is not in {self._home.adapters}; move it there first")
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RegistryError(f"{folder} has no readable manifest.json: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("id") != folder.name:
            raise RegistryError(f"{folder} is not the adapter its manifest.json names")
        return manifest


def _adapter_row(row: Any) -> AdapterRow:
    parsed = {key: json.loads(row[key]) for key in ("recipe", "lineage")}
    return AdapterRow(**{**dict(row), **parsed})
