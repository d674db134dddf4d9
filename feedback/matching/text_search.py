"""Searches approved questions and answers by words, at a cost that does not grow with the store."""

import json
from collections.abc import Collection, Iterator

from feedback.matching.typing_errors import is_typing_error, possible_originals
from feedback.similarity import content_words, normalise_text, split_scripts
from feedback.store import Store

MAX_RANKED = 1000
"""So many matches are ranked at the most."""
_MAX_EXAMINED = 500
_MAX_TERMS = 64
"""So many words of a question are searched for at the most, the longest: those say most, and a
question of a megabyte would take SQLite many seconds."""
_MAX_WORD_LENGTH = 64
"""Longer ones are no words, and the originals of one of a megabyte would fill any memory."""
_MAX_UNKNOWN = 3
"""So many words of a question may be a typing error's: names and short forms are unknown too."""


def search_queries(store: Store, question: str) -> Iterator[tuple[str, str]]:
    """Yield (index, full-text query) of the queries that find any of a question's words.

    Where no spaces are set between words, any three characters in a row are searched for.
    """
    spaced, runs = split_scripts(normalise_text(question))
    words = content_words(spaced) or set(spaced.split())
    grams = {run[i : i + 3] for run in runs for i in range(len(run) - 2)}
    for index, terms in (("approved_fts", words), ("approved_trigrams", grams)):
        query = _query(store, index, terms)
        if query:
            yield index, query


def _query(store: Store, index: str, terms: Collection[str]) -> str:
    """Return the full-text query for any of these terms, or "" when none is to be found.

    Terms that are in more texts than are ranked count only together with each other.
    """
    longest = sorted(terms, key=lambda term: (-len(term), term))[:_MAX_TERMS]
    counts = {term: _count_matches(store, index, _quoted(term)) for term in longest}
    rarest = sorted((term for term in counts if counts[term]), key=lambda term: counts[term])
    alternatives: list[str] = []
    budget = MAX_RANKED
    while rarest and counts[rarest[0]] <= budget:
        budget -= counts[rarest[0]]
        alternatives.append(_quoted(rarest.pop(0)))
    for number in range(2, len(rarest) + 1):
        together = " AND ".join(_quoted(term) for term in rarest[:number])
        if _count_matches(store, index, together) <= budget or number == len(rarest):
            alternatives.append(f"({together})")
            break
    return " OR ".join(alternatives or map(_quoted, rarest))


def _count_matches(store: Store, index: str, match: str) -> int:
    """Count what a full-text query finds, up to one more than is ranked."""
    sql = f"select count(*) from (select 1 from {index} where {index} match ? limit ?)"
    return int(store.rows(sql, (match, MAX_RANKED + 1))[0][0])


def _quoted(term: str) -> str:
    """Return a term as full-text search takes it word for word."""
    return '"' + term.replace('"', "") + '"'


def keys_without_typo(store: Store, key: str) -> list[str]:
    """Return the keys of approved questions that differ by a typing error in one word, which no
    approved question or answer holds."""
    words = key.split(" ")
    if len(words) > _MAX_TERMS:
        return []
    unknown = [
        n
        for n, word in enumerate(words)
        if len(word) <= _MAX_WORD_LENGTH and not _is_in_use(store, word)
    ]
    originals = {
        " ".join([*words[:n], original, *words[n + 1 :]]): (words[n], original)
        for n in unknown[:_MAX_UNKNOWN]
        for original in possible_originals(words[n])
    }
    if not originals:
        return []
    found = store.rows(
        "select distinct question_key from approved"
        " where question_key in (select value from json_each(?))",
        (json.dumps(list(originals)),),
    )
    return [key for (key,) in found if is_typing_error(*originals[key])]


def _is_in_use(store: Store, word: str) -> bool:
    """Tell whether an approved question or answer holds this very word, as far as some hundreds
    that hold its stem show: the index knows no more than stems."""
    for limit in (20, _MAX_EXAMINED):
        rows = store.rows(
            "select question || ' ' || answer from approved_fts where approved_fts match ? limit ?",
            (_quoted(word), limit),
        )
        if any(word in normalise_text(text).split() for (text,) in rows):
            return True
        if len(rows) < limit:
            break
    return False
