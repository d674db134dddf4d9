"""Stores conversations as trees of messages, the speaker of each answer, and feedback on it.

store = Store(Home.find().db)
conversation = store.start_conversation("ann", "When do you open?")
question = store.add_message(conversation, None, "user", "When do you open?")
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from feedback import kinds
from feedback.db.database import Database
from feedback.exchange import Exchange, Exchanges
from feedback.ids import new_id, now
from feedback.kinds import BadFeedbackError, Feedback
from feedback.messages import (
    BadMessageError,
    Conversation,
    Message,
    NotFoundError,
    Role,
    Speaker,
)

TITLE_LENGTH = 60


class Store(Database):
    """Stores conversations and feedback in a SQLite file; safe for threads and processes."""

    def start_conversation(self, person: str, first_message: str) -> str:
        """Start a conversation of ``person``, titled by its first message; return its id."""
        id = new_id("con")
        with self.write() as db:
            row = {"id": id, "person": person, "title": _title(first_message), "created_at": now()}
            db.insert("conversation", row)
        return id

    def add_message(
        self,
        conversation_id: str,
        parent_id: str | None,
        role: Role,
        content: str,
        speaker: Speaker | None = None,
        id: str | None = None,
        *,
        thought: str | None = None,
    ) -> str:
        """Keep a message under its parent (None: it opens the conversation); return its id.

        ``thought`` is what the model thought before it.

        Raises NotFoundError for an unknown conversation or parent, BadMessageError for a parent in
        another conversation, an unknown role or an id that is taken.
        """
        id = id or new_id("msg")
        with self.write() as db:
            self._check_message(conversation_id, parent_id, role, id)
            row = {
                "id": id,
                "conversation_id": conversation_id,
                "parent_id": parent_id,
                "role": role,
                "content": content,
                "created_at": now(),
                "thought": thought or None,
            }
            db.insert("message", row)
            if speaker is not None:
                db.insert("speaker", vars(speaker) | {"message_id": id})
        return id

    def _check_message(
        self, conversation_id: str, parent_id: str | None, role: str, id: str
    ) -> None:
        self.conversation(conversation_id)
        if role not in ("user", "assistant"):
            raise BadMessageError(
                f"unknown role {role!r}; a message is the user's or the assistant's"
            )
        if parent_id is not None and self.message(parent_id).conversation_id != conversation_id:
            raise BadMessageError(f"{parent_id} is not in {conversation_id}; name a parent that is")
        if self.row("select 1 from message where id = ?", (id,)):
            raise BadMessageError(f"there is a message {id} already; leave the id to the store")

    def conversation(self, id: str) -> Conversation:
        """Return the conversation; raise NotFoundError."""
        row = self.row("select * from conversation where id = ?", (id,))
        if row is None:
            raise NotFoundError(f"no conversation {id!r}")
        return Conversation(**row)

    def conversations(self, person: str) -> list[Conversation]:
        """Return all of a person's conversations, newest first."""
        sql = "select * from conversation where person = ? order by rowid desc"
        return [Conversation(**row) for row in self.rows(sql, (person,))]

    def message(self, id: str) -> Message:
        """Return the message; raise NotFoundError."""
        row = self.row("select * from message where id = ?", (id,))
        if row is None:
            raise NotFoundError(f"no message {id!r}")
        return Message(**row)

    def has_message(self, id: str) -> bool:
        """Tell whether there is such a message."""
        return self.row("select 1 from message where id = ?", (id,)) is not None

    def thread(self, id: str) -> list[Message]:
        """Return the messages from the opening one down to this one; raise NotFoundError."""
        rows = self.rows(
            """with recursive up (id, above, steps) as (
                select id, parent_id, 0 from message where id = ?
                union all
                select m.id, m.parent_id, steps + 1 from message m join up on m.id = up.above)
            select m.* from up join message m using (id) order by steps desc""",
            (id,),
        )
        if not rows:
            raise NotFoundError(f"no message {id!r}")
        return [Message(**row) for row in rows]

    def exchange(self, message_id: str) -> Exchange:
        """Return an answer with its question, its speaker and who asked; raise NotFoundError."""
        return self.exchanges([message_id])[message_id]

    def exchanges(self, message_ids: Iterable[str]) -> Exchanges:
        """Return the exchanges that end in these messages; unknown ids are left out.

        Takes two queries, however many ids there are.
        """
        message_ids = list(message_ids)
        ids = json.dumps(message_ids)
        threads: dict[str, list[Message]] = {}
        people: dict[str, str] = {}
        for row in self.rows(_THREADS, (ids,)):
            fields = dict(row)
            answer_id = fields.pop("answer_id")
            people[answer_id] = fields.pop("person")
            threads.setdefault(answer_id, []).append(Message(**fields))
        speakers = self.speakers(message_ids)
        return Exchanges(
            (id, Exchange(thread, speakers.get(id), people[id])) for id, thread in threads.items()
        )

    def speakers(self, message_ids: Iterable[str]) -> dict[str, Speaker]:
        """Return who gave each of these answers, in one query; messages without are left out."""
        sql = "select * from speaker where message_id in (select value from json_each(?))"
        rows = self.rows(sql, (json.dumps(list(message_ids)),))
        return {row["message_id"]: Speaker.from_row(row) for row in rows}

    def children(self, id: str) -> list[Message]:
        """Return the direct answers to a message (or turns after it), oldest first."""
        sql = "select * from message where parent_id = ? order by rowid"
        return [Message(**row) for row in self.rows(sql, (id,))]

    def messages(self, conversation_id: str) -> list[Message]:
        """Return all messages of a conversation, on all its branches, oldest first."""
        sql = "select * from message where conversation_id = ? order by rowid"
        return [Message(**row) for row in self.rows(sql, (conversation_id,))]

    def leaves(self, conversation_id: str) -> list[str]:
        """Return the ids of the messages that end a conversation's branches, oldest first."""
        sql = """select id from message as leaf where conversation_id = ? and not exists
            (select 1 from message where parent_id = leaf.id) order by rowid"""
        return [row["id"] for row in self.rows(sql, (conversation_id,))]

    def latest_message(self, conversation_id: str) -> Message | None:
        """Return the newest message, which ends the branch that was written to last."""
        sql = "select * from message where conversation_id = ? order by rowid desc limit 1"
        row = self.row(sql, (conversation_id,))
        return Message(**row) if row else None

    def speaker(self, message_id: str) -> Speaker | None:
        """Return who gave this answer; None for a person's message."""
        row = self.row("select * from speaker where message_id = ?", (message_id,))
        return Speaker.from_row(row) if row else None

    def add_feedback(
        self,
        message_id: str,
        person: str,
        kind: str,
        value: Mapping[str, Any],
        idempotency_key: str | None = None,
        *,
        known: bool = False,
    ) -> str:
        """Keep feedback of ``person`` on an answer; return its id once it is on the disk.

        ``known`` says that a key or a login names the person.

        The same key and content again gives the same id and keeps nothing twice. Raises
        NotFoundError, BadFeedbackError for a wrong kind or value, and IdempotencyKeyTakenError for
        a key that came with other content.
        """
        kinds.validate(kind, value)
        with self.write() as db:
            self._check_target(message_id, kind, value)
            kept = self._find_duplicate(message_id, person, kind, value, idempotency_key)
            if kept is not None:
                return kept
            row = {
                "id": new_id("fb"),
                "message_id": message_id,
                "person": person,
                "kind": kind,
                "value": dict(value),
                "idempotency_key": idempotency_key,
                "created_at": now(),
                "known": known,
            }
            db.insert("feedback", row)
        return str(row["id"])

    def check_feedback(self, message_id: str, kind: str, value: Mapping[str, Any]) -> None:
        """Raise NotFoundError or BadFeedbackError where `add_feedback` would; nothing is kept."""
        kinds.validate(kind, value)
        self._check_target(message_id, kind, value)

    def _check_target(self, message_id: str, kind: str, value: Mapping[str, Any]) -> None:
        answer = self.message(message_id)
        if answer.role != "assistant":
            raise BadFeedbackError(f"{message_id} is a person's message; feedback is on answers")
        if kind == "choice":
            other = self.message(value["over"])
            siblings = other.role == "assistant" and other.parent_id == answer.parent_id
            same_conversation = other.conversation_id == answer.conversation_id
            if other.id == answer.id or not (siblings and same_conversation):
                raise BadFeedbackError(
                    f"{message_id} and {other.id} are not two answers to one message; "
                    "a choice is between those"
                )

    def _find_duplicate(
        self, message_id: str, person: str, kind: str, value: Mapping[str, Any], key: str | None
    ) -> str | None:
        sql = "select * from feedback where person = ? and idempotency_key = ?"
        row = self.row(sql, (person, key))
        if row is None:
            return None
        if (row["message_id"], row["kind"], json.loads(row["value"])) != (message_id, kind, value):
            raise kinds.IdempotencyKeyTakenError(
                f"idempotency key {key!r} came with other feedback before; use a new key for this"
            )
        return str(row["id"])

    def feedback_on(self, message_id: str) -> list[Feedback]:
        """Return all feedback on an answer, oldest first."""
        sql = "select * from feedback where message_id = ? order by rowid"
        return [Feedback.from_row(row) for row in self.rows(sql, (message_id,))]

    def feedback_by_message(self, message_ids: Iterable[str]) -> dict[str, list[Feedback]]:
        """Return the feedback on each of these answers, oldest first, in one query."""
        found: dict[str, list[Feedback]] = {id: [] for id in message_ids}
        sql = """select * from feedback
            where message_id in (select value from json_each(?)) order by rowid"""
        for row in self.rows(sql, (json.dumps(list(found)),)):
            found[row["message_id"]].append(Feedback.from_row(row))
        return found

    def counts(self) -> dict[str, int]:
        """Count conversations, messages, feedback and so on, for ``talkback status``."""
        row = self.row(_COUNTS)
        return dict(row) if row else {}


_THREADS = """
with recursive up (answer_id, id, parent_id, steps) as (
    select id, id, parent_id, 0 from message where id in (select value from json_each(?))
    union all
    select answer_id, m.id, m.parent_id, steps + 1 from message m join up on m.id = up.parent_id)
select answer_id, c.person, m.* from up join message m using (id)
    join conversation c on c.id = m.conversation_id
order by answer_id, steps desc"""
"""The threads that end in the messages whose ids are a JSON list, each from its first message."""

_COUNTS = """select
    (select count(*) from conversation) as conversations,
    (select count(distinct person) from conversation) as people,
    (select count(*) from message) as messages,
    (select count(*) from feedback) as feedback,
    (select count(*) from feedback where kind = 'thumb') as thumbs,
    (select count(*) from feedback where kind = 'edit') as edits,
    (select count(*) from feedback where kind = 'choice') as choices,
    (select count(*) from feedback where kind = 'comment') as comments,
    (select count(*) from review) as reviews,
    (select count(*) from review where action = 'correct') as corrections,
    (select count(*) from approved where id not in (select approved_id from withdrawal))
        as approved,
    (select count(*) from adapter) as adapters,
    (select count(*) from promotion) as promotions,
    (select count(*) from cycle) as cycles"""


def _title(first_message: str) -> str:
    words = " ".join(first_message.split())
    if len(words) <= TITLE_LENGTH:
        return words or "New conversation"
    return words[:TITLE_LENGTH].rsplit(" ", 1)[0] + "…"
