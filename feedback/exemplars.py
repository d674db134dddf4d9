"""Finds approved answers: to be given as they stand, or placed in the prompt as exemplars.

The same question gets the approved answer itself; a similar one gets it as an example to go by.
An answer that an adapter gives unaided has graduated, and leaves the prompts of that adapter.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter, itemgetter

from feedback.ids import now
from feedback.matching.embedding import MAX_LENGTH, Embedder
from feedback.matching.follow_ups import TURN_SEPARATOR, depends_on_context
from feedback.matching.follow_ups import question_key as question_key
from feedback.matching.text_search import MAX_RANKED, keys_without_typo, search_queries
from feedback.matching.vector_search import (
    Neighbours,
    find_neighbours,
    question_cosines,
)
from feedback.similarity import (
    content_words,
    count_shared_words,
    jaccard,
    trigram_similarity,
    trigrams,
    word_overlap,
)
from feedback.store import Store

MIN_OVERLAP = 0.5
"""How much of their content words two questions must share for one to be the other's exemplar; or
how much of the one's words the other and its answer must hold."""
MIN_SHARED_WORDS = 2
"""How many words must be shared at the least where those of the answer count too."""
QUESTION_WEIGHT = 3
"""Weight in BM25 of the question's column; the answer's has 1."""

TRIGRAM_WEIGHT, WORDS_BONUS = 0.3, 0.1
"""What is added to the cosine of two vectors: this times the Jaccard similarity of the trigrams,
and this where the words say enough."""

_MIN_CANDIDATES, _MAX_CANDIDATES = 8, 50


@dataclass(frozen=True)
class ApprovedAnswer:
    """Holds an answer that a reviewer approved; a ``question_key`` is that of one question."""

    id: str
    review_id: str
    message_id: str
    question: str
    question_key: str
    answer: str
    created_at: str


@dataclass(frozen=True)
class SimilarQuestion:
    """Holds an approved answer and how similar its question is to another, 0 to 1."""

    approved: ApprovedAnswer
    similarity: float


def find_approved(
    store: Store, question: str, *, earlier: Sequence[str] = (), adapter: str | None = None
) -> ApprovedAnswer | None:
    """Return the approved answer to this very question, typing errors aside; the newest if several.

    ``earlier`` are the person's turns before it: "And on Sundays?" is the same question only
    after the same turn. ``adapter`` is who would answer (None: the one in service).
    """
    key = question_key(question, earlier)
    if not any(mark.isalnum() for mark in key):
        return None
    exact = _select_active(store, adapter, "a.question_key = ?", (key,))
    if exact:
        return exact[0]
    meant = keys_without_typo(store, key)
    if not meant:
        return None
    near = _select_active(
        store, adapter, "a.question_key in (select value from json_each(?))", (json.dumps(meant),)
    )
    return near[0] if near else None


def find_exemplars(
    store: Store,
    question: str,
    limit: int = 3,
    *,
    earlier: Sequence[str] = (),
    adapter: str | None = None,
    embedder: Embedder | None = None,
) -> list[ApprovedAnswer]:
    """Return up to ``limit`` approved answers to similar questions, the best first.

    The vectors of ``embedder`` (None: the static one) find them. Where it knows nothing of the
    question, or has not made all vectors yet, full-text search does (BM25).

    Returns nothing for or from a question that depends on the turn before it: out of its
    conversation its words do not say what it is about, and an exemplar that misleads is worse than
    none.
    """
    if limit < 1 or depends_on_context(question, earlier):
        return []
    neighbours = find_neighbours(store, question, embedder)
    found = _rank_neighbours(store, question, limit, adapter, neighbours) if neighbours else []
    if neighbours is None or not neighbours.complete:
        words, known = content_words(question), {one.id for one in found}
        by_words = (
            one
            for one in _search(store, question, adapter)
            if TURN_SEPARATOR not in one.question_key
            and one.id not in known
            and _is_similar(words, one)
        )
        found += islice(by_words, limit - len(found))
    return found


def _rank_neighbours(
    store: Store, question: str, limit: int, adapter: str | None, neighbours: Neighbours
) -> list[ApprovedAnswer]:
    """Return those of a question's neighbours that are similar to it, the best first.

    Their score is the cosine of the question and of an approved one with its answer, and more for
    common trigrams and words. docs/exemplars.md has what was measured.
    """
    best: list[tuple[float, ApprovedAnswer]] = []
    words, grams = content_words(question), trigrams(question[:MAX_LENGTH])
    threshold = neighbours.embedder.threshold
    for approved, cosine in _active_neighbours(store, adapter, neighbours):
        least = best[-1][0] if len(best) == limit else threshold
        if cosine + TRIGRAM_WEIGHT + WORDS_BONUS < least:
            break
        shared = jaccard(grams, trigrams(approved.question[:MAX_LENGTH]))
        score = cosine + TRIGRAM_WEIGHT * shared
        if least - WORDS_BONUS <= score:
            score += WORDS_BONUS * _is_similar(words, approved)
        if score >= threshold:
            best = sorted([*best, (score, approved)], key=itemgetter(0), reverse=True)[:limit]
    return [approved for _, approved in best]


def _active_neighbours(
    store: Store, adapter: str | None, neighbours: Neighbours
) -> Iterator[tuple[ApprovedAnswer, float]]:
    """Yield the nearest of a question's neighbours that are in use, with their cosines."""
    condition, found = "a.id in (select value from json_each(?))", 0
    for cosines in neighbours.nearest_first():
        active = _select_active(store, adapter, condition, (json.dumps(list(cosines)),))
        by_id = {one.id: one for one in active}
        yield from ((by_id[id], cosine) for id, cosine in cosines.items() if id in by_id)
        found += len(active)
        if found >= _MIN_CANDIDATES:
            break


def find_similar(
    store: Store,
    question: str,
    *,
    earlier: Sequence[str] = (),
    adapter: str | None = None,
    embedder: Embedder | None = None,
) -> SimilarQuestion | None:
    """Return the approved question that is most similar to this one, None where there is none.

    The similarity is the mean of the vectors' cosine and of the trigrams' Jaccard similarity, 1
    for the same text: by cosines alone Sundays would be Mondays.
    """
    if depends_on_context(question, earlier):
        return None
    neighbours = find_neighbours(store, question, embedder)
    if neighbours is None:
        candidates = [
            one
            for one in _search(store, question, adapter)
            if TURN_SEPARATOR not in one.question_key
        ]
    else:
        nearest = _active_neighbours(store, adapter, neighbours)
        candidates = [one for one, _ in islice(nearest, _MAX_CANDIDATES)]
    cosines = question_cosines(store, neighbours, [one.id for one in candidates])
    similar = []
    for approved in candidates:
        shared = trigram_similarity(question[:MAX_LENGTH], approved.question[:MAX_LENGTH])
        similarity = (cosines.get(approved.id, shared) + shared) / 2
        similar.append(SimilarQuestion(approved, similarity))
    return max(similar, key=attrgetter("similarity"), default=None)


def _is_similar(asked: set[str], approved: ApprovedAnswer) -> bool:
    """Tell whether a question's words say enough about an approved one, or about its answer.

    "Do you open at 9?" has none of "What are your hours?" and all of "From 9, open daily".
    """
    question = content_words(approved.question)
    # A single word ("order", of "Where is my order?") says too little about three or more.
    if (len(question) > 1 or len(asked) < 3) and word_overlap(asked, question) >= MIN_OVERLAP:
        return True
    shared = count_shared_words(asked, question | content_words(approved.answer))
    return shared >= max(MIN_SHARED_WORDS, MIN_OVERLAP * len(asked))


def active_answers(store: Store, adapter: str | None = None) -> list[ApprovedAnswer]:
    """Return all approved answers in use for an adapter (None: the one in service), newest first:
    neither withdrawn nor graduated."""
    return _select_active(store, adapter, "true", ())


def graduate(store: Store, approved_id: str, adapter: str) -> None:
    """Record that this adapter gives the approved answer unaided; others still get it."""
    with store.write() as db:
        db.execute(
            "insert or ignore into graduation (approved_id, adapter, created_at) values (?, ?, ?)",
            (approved_id, adapter, now()),
        )


def _search(store: Store, question: str, adapter: str | None) -> list[ApprovedAnswer]:
    """Return what full-text search finds for any of the question's words, best match first."""
    found = [
        one
        for index, query in search_queries(store, question)
        for one in _select_active(
            store,
            adapter,
            "true",
            (query,),
            index=index,
        )
    ]
    return list({one.id: one for one in found}.values())


def _select_active(
    store: Store,
    adapter: str | None,
    condition: str,
    args: tuple[object, ...],
    *,
    index: str = "",
) -> list[ApprovedAnswer]:
    """Return the approved answers in use that meet a condition, newest first; or the best that
    full-text search finds in an index for the query in ``args``, best first."""
    ranked, source, order = "", "approved a", "order by a.rowid desc"
    if index:
        # Only of the best are the texts read: of thousands that takes longer than to rank them.
        ranked = f"""with ranked as (
                select rowid as number, bm25({index}, 0, {QUESTION_WEIGHT}, 1) as score
                from {index} where {index} match ? order by rowid desc limit {MAX_RANKED}),
            best as materialized (
                select number from ranked order by score, number desc limit {MAX_RANKED})"""
        # A cross join keeps the order of its first table, and ends when it has enough.
        source = f"""best cross join {index} on {index}.rowid = best.number
            cross join approved a on a.id = approved_id"""
        order = f"limit {_MAX_CANDIDATES}"
    rows = store.rows(
        f"""{ranked} select a.* from {source} where {condition}
        and a.id not in (select approved_id from withdrawal)
        and not exists (select 1 from graduation where approved_id = a.id and adapter = coalesce(
            ?, (select adapter from promotion order by rowid desc limit 1), adapter))
        {order}""",
        (*args, adapter),
    )
    return [ApprovedAnswer(**row) for row in rows]


def format_exemplars(question: str, exemplars: Sequence[tuple[str, str]]) -> str:
    """Return the last user message: approved (question, answer) pairs first, then the question.

    The pairs go into the last message and not into the system message, because every chat
    template has a user turn, and because the history before it keeps its prefix in the cache.
    """
    if not exemplars:
        return question
    pairs = "".join(f"\nQ: {asked}\nA: {answer}" for asked, answer in exemplars)
    return f"Approved answers:{pairs}\n\nQuestion: {question}"
