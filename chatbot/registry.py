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

from chatbot.model.base_name import canonical_name, find_folder
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
        self.adapter(id)
        made = Promotion(new_id("pro"), id, by, who, reason, report, now())
        with self._store.write() as db:
            self._check_seen(seen)
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
        served: list[str] = []
        for id in reversed([promotion.adapter for promotion in history]):
            if self.adapter(id).base_revision == self.adapter(history[0].adapter).base_revision:
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
        self._record_base(base)
        current = self.current()
        if current is not None and current.base_revision == base.revision:
            return current
        known = [p.adapter for p in self.history()]
        ours = [id for id in known if self.adapter(id).base_revision == base.revision]
        chosen = ours[0] if ours else self._register_untrained(base)
        self.promote(chosen, "start", "talkback", f"first start on {base.name}")
        return self.adapter(chosen)

    def base_name(self, adapter: AdapterRow) -> str:
        """Return where the adapter's base is now: a folder, the starter's name or a Hub id.

        Raises RegistryError for a folder that is nowhere to be found.
        """
        row = self._store.row(
            "select name from base_location where revision = ?", (adapter.base_revision,)
        )
        names = [*([str(row["name"])] if row else []), adapter.base]
        for name in names:
            if find_folder(name) is not None:
                return canonical_name(name)
        # The hash of a folder's files, and not a commit of the Hub, which is not to be asked.
        if str(adapter.base_revision).startswith("sha-"):
            raise RegistryError(
                f"there is no folder {names[0]}, the base of {adapter.id}; start `talkback serve "
                "--base-model FOLDER` once with the folder that it is in now"
            )
        return names[0]

    def _record_base(self, base: "Base") -> None:
        known = self._store.row(
            "select 1 from base_location where revision = ? and name = ?",
            (base.revision, base.name),
        )
        if known is None:
            with self._store.write() as db:
                db.execute(
                    "insert or replace into base_location values (?, ?, ?)",
                    (base.revision, base.name, now()),
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
