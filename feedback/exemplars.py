"""Finds approved answers: to be given as they stand, or placed in the prompt as exemplars.

The same question gets the approved answer itself; a similar one gets it as an example to go by.
An answer that an adapter gives unaided has graduated, and leaves the prompts of that adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from feedback.ids import now
from feedback.similarity import (
    content_words,
    count_shared_words,
    normalise_text,
    same_but_for_typo,
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

_MAX_CANDIDATES = 50
_MAX_QUERY_WORDS = 64
"""A question of a megabyte would take SQLite many seconds; the longest words say most."""
# Words that point back, and words that continue: a question with one depends on its context.
_ANAPHORA_TEXT = "it its that this these those they them he him she her there then one ones"
_ANAPHORA = frozenset(_ANAPHORA_TEXT.split())
_CONJUNCTIONS = ("and", "or", "but", "so", "also", "else")


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
    near = _search(store, question, adapter)
    return next((one for one in near if same_but_for_typo(one.question_key, key)), None)


def find_exemplars(
    store: Store,
    question: str,
    limit: int = 3,
    *,
    earlier: Sequence[str] = (),
    adapter: str | None = None,
) -> list[ApprovedAnswer]:
    """Return up to ``limit`` approved answers to similar questions, the best first (BM25).

    Returns nothing for or from a question that depends on the turn before it: out of its
    conversation its words do not say what it is about, and an exemplar that misleads is worse than
    none.
    """
    if _depends_on_context(question, earlier):
        return []
    words = content_words(question)
    found = (
        one for one in _search(store, question, adapter) if _TURN_SEPARATOR not in one.question_key
    )
    return [one for one in found if _is_similar(words, one)][:limit]


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


_TURN_SEPARATOR = " / "
"""Between the turns of a key; no normalised question on its own contains it."""


def question_key(question: str, earlier: Sequence[str] = ()) -> str:
    """Return the key that all ways to put the same question have in common.

    That of a self-contained question is its normalised text. One that depends on the conversation
    brings along the turns it depends on: those back to the last self-contained one.
    """
    turns = [question]
    for turn in reversed(earlier):
        if is_self_contained(turns[0]):
            break
        turns.insert(0, turn)
    return _TURN_SEPARATOR.join(normalise_text(turn) for turn in turns)


def is_self_contained(question: str) -> bool:
    """Tell whether a question can be understood without the turn before it.

    Short ones ("how much?"), ones that continue ("and ...", "what about ...") and ones that point
    back ("how long does it take") may not: better to take too many for follow-ups than too few.
    """
    words = normalise_text(question).split()
    if len(words) < 4 or words[0] in _CONJUNCTIONS or words[1] == "about":
        return False
    return _ANAPHORA.isdisjoint(words)


def _depends_on_context(question: str, earlier: Sequence[str]) -> bool:
    return bool(earlier) and not is_self_contained(question)


def _search(store: Store, question: str, adapter: str | None) -> list[ApprovedAnswer]:
    """Return what full-text search finds for any of the question's words, best match first."""
    words = content_words(question) or set(normalise_text(question).split())
    longest = sorted(words, key=lambda word: (-len(word), word))[:_MAX_QUERY_WORDS]
    query = " OR ".join('"' + word.replace('"', "") + '"' for word in longest)
    if not query:
        return []
    return _select_active(
        store,
        adapter,
        "f.approved_fts match ?",
        (query,),
        join="join approved_fts f on f.approved_id = a.id",
        order=f"bm25(approved_fts, 0, {QUESTION_WEIGHT}, 1), a.rowid desc",
    )


def _select_active(
    store: Store,
    adapter: str | None,
    condition: str,
    args: tuple[object, ...],
    *,
    join: str = "",
    order: str = "a.rowid desc",
) -> list[ApprovedAnswer]:
    rows = store.rows(
        f"""select a.* from approved a {join} where {condition}
        and a.id not in (select approved_id from withdrawal)
        and a.id not in (select approved_id from graduation where adapter = coalesce(
            ?, (select adapter from promotion order by rowid desc limit 1), adapter))
        order by {order} limit {_MAX_CANDIDATES if join else -1}""",
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
