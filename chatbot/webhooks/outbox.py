"""Reads the outbox: what happened, in order, and how far each URL has acknowledged it.

    for event in events_after(store, last_acknowledged(store, url) or 0, ["feedback"]):
        print(event.payload())

An event is a row of its own, written in the transaction of the row it is about (transactional
outbox). Its payload is read when it is delivered, so an erased row is sent to nobody.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from feedback.ids import now
from feedback.store import Store

EventType = Literal["feedback", "review", "promotion"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


@dataclass(frozen=True)
class WebhookEvent:
    """Holds one event. ``number`` orders events; ``id`` is that of the row that the event is about,
    ``data`` the row's content, None when it is erased."""

    number: int
    type: EventType
    id: str
    created_at: str
    data: dict[str, Any] | None

    def payload(self) -> dict[str, Any]:
        """Return the payload in the format of Standard Webhooks."""
        return {"type": f"{self.type}.created", "timestamp": self.created_at, "data": self.data}


def events_after(
    store: Store, number: int, types: Sequence[EventType], limit: int = 100
) -> list[WebhookEvent]:
    """Return at most ``limit`` events of these types after event ``number``, oldest first."""
    rows = store.rows(
        """select * from event where number > ? and type in (select value from json_each(?))
        order by number limit ?""",
        (number, json.dumps(list(types)), limit),
    )
    return [WebhookEvent(**row, data=_event_data(store, row["type"], row["id"])) for row in rows]


def count_after(store: Store, number: int, types: Sequence[EventType]) -> int:
    """Return how many events of these types there are after event ``number``."""
    row = store.row(
        """select count(*) as n from event
        where number > ? and type in (select value from json_each(?))""",
        (number, json.dumps(list(types))),
    )
    return int(row["n"]) if row else 0


def last_number(store: Store) -> int:
    """Return the number of the newest event, 0 before the first."""
    row = store.row("select max(number) as number from event")
    return int(row["number"] or 0) if row else 0


def feedback_counts(store: Store, number: int, until: int) -> dict[str, int]:
    """Return how much feedback of each kind came after event ``number`` up to event ``until``."""
    rows = store.rows(
        """select kind, count(*) as n from event join feedback using (id)
        where number > ? and number <= ? group by kind""",
        (number, until),
    )
    return {row["kind"]: row["n"] for row in rows}


def last_acknowledged(store: Store, url: str) -> int | None:
    """Return the last event that this URL has acknowledged, None for one not registered."""
    row = store.row("select max(event) as number from delivery where url = ?", (url,))
    return row["number"] if row else None


def register(store: Store, url: str) -> None:
    """Register a URL that is new: it gets the events from now on, and none from before."""
    with store.write():
        if last_acknowledged(store, url) is None:
            acknowledge(store, url, last_number(store))


def acknowledge(store: Store, url: str, number: int) -> None:
    """Store durably that this URL has everything up to this event."""
    with store.write() as db:
        row = {"url": url, "event": number, "delivered_at": now()}
        db.insert("delivery", row)
        db.execute("delete from delivery where url = ? and event < ?", (url, number))


def _event_data(store: Store, kind: EventType, id: str) -> dict[str, Any] | None:
    row = store.row(f"select * from {kind} where id = ?", (id,))
    if row is None:
        return None
    data = dict(row)
    if kind == "promotion":
        return data | {"before": _previous_adapter(store, id)}
    if kind == "feedback":
        data["value"] = json.loads(data["value"])
    return data | {"message": _message_data(store, data["message_id"])}


def _message_data(store: Store, id: str) -> dict[str, Any]:
    """Return the answer that an event is about, with its question and its speaker."""
    exchange = store.exchange(id)
    speaker = exchange.speaker
    return {
        "conversation_id": exchange.answer.conversation_id,
        "question": exchange.question,
        "answer": exchange.answer.content,
        "adapter": speaker.adapter if speaker else None,
        "base": speaker.base if speaker else None,
    }


def _previous_adapter(store: Store, id: str) -> str | None:
    """Return the adapter that was in service before this promotion."""
    row = store.row(
        """select adapter from promotion
        where rowid < (select rowid from promotion where id = ?) order by rowid desc limit 1""",
        (id,),
    )
    return row["adapter"] if row else None
