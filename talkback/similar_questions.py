"""Previews what ``[chat] approved_similarity`` would do, on questions that people have asked."""

from dataclasses import dataclass

from chatbot.chat_settings import ChatSettings
from feedback.exemplars import find_approved, find_similar
from feedback.matching.follow_ups import is_self_contained
from feedback.matching.remote_embedder import open_embedder
from feedback.matching.vector_search import fill_all
from feedback.settings import Home
from feedback.store import Store

DEFAULT_THRESHOLD = 0.6
"""Similarity from which few answers are wrong, see docs/exemplars.md."""


@dataclass(frozen=True)
class Preview:
    """Holds a question that people asked, and the approved one whose answer it would get."""

    question: str
    asked: int
    """How many times."""
    answered_as: str
    similarity: float


def preview_similar(home: Home, threshold: float | None = None, limit: int = 1000) -> list[Preview]:
    """Return which of the newest questions would get an approved answer to another one as it
    stands, the most similar first; those that have an approved answer of their own are left out.

    ``threshold`` None is that of the settings, or 0.6.
    """
    if threshold is None:
        threshold = ChatSettings.read(home).approved_similarity or DEFAULT_THRESHOLD
    store, embedder = Store(home.db), open_embedder(home)
    fill_all(store, embedder)
    rows = store.rows(
        """select content, count(*) as asked, max(parent_id is not null) as later from message
        where role = 'user' group by content order by max(rowid) desc limit ?""",
        (limit,),
    )
    previews = []
    for row in rows:
        text = row["content"]
        if (row["later"] and not is_self_contained(text)) or find_approved(store, text):
            continue
        similar = find_similar(store, text, embedder=embedder)
        if similar is not None and similar.similarity >= threshold:
            found = similar.approved.question
            previews.append(Preview(text, row["asked"], found, round(similar.similarity, 2)))
    store.close()
    if embedder is not None:
        embedder.close()
    return sorted(previews, key=lambda one: one.similarity, reverse=True)
