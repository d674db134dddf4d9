"""Splits questions into train and held out: by cluster, once and for ever.

A cluster is a conversation and everything that nearly repeats one of its questions. A newcomer
joins the cluster it touches; one that touches clusters of both sides goes to neither.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from feedback.curation.rows import Side
from feedback.ids import now
from feedback.matching.near_groups import near_duplicate_groups
from feedback.similarity import near_duplicates, normalise_text
from feedback.store import Store

NEAR_DUPLICATE = 0.6
"""Trigram similarity from which two questions count as one. Low on purpose: a cluster too large
costs a lumpier split, one too small leaks the answer to a held-out question into training."""


Links = Mapping[str, set[str]]
"""The ids that each id is linked to."""


@dataclass(frozen=True)
class SplitItem:
    """Holds what is assigned to a side: an answer's message id, its conversation and question."""

    id: str
    conversation_id: str
    question: str


@dataclass(frozen=True)
class Assignment:
    """Holds the cluster and the side of the split that an item belongs to."""

    cluster: str
    side: Side


def assign(
    store: Store, items: Sequence[SplitItem], *, held_out: float, persist: bool = True
) -> dict[str, Assignment | None]:
    """Return the cluster and side of each item; None for one that bridges train and held-out.

    Earlier decisions stand. New ones are written to the store unless ``persist`` is false; they
    follow from the items alone, so that looking first changes nothing.
    """
    assignments = _load_assignments(store)
    everyone = {item.id: item for item in [*split_items(store, assignments), *items]}
    new = [item for item in everyone.values() if item.id not in assignments]
    links = _links(everyone.values(), assignments)
    assigned: dict[str, Assignment] = {}
    for group in _groups(new, links):
        assigned |= _assign_group(group, links, assignments, held_out)
    if persist:
        _save(store, assigned)
    assignments |= assigned
    return {item.id: assignments.get(item.id) for item in items}


def _assign_group(
    group: Sequence[SplitItem],
    links: Links,
    assignments: Mapping[str, Assignment],
    held_out: float,
) -> dict[str, Assignment]:
    """Assign new items that are linked to each other: all to one cluster if that is possible."""
    touched = [
        assignments[id]
        for item in group
        for id in sorted(links.get(item.id, ()))
        if id in assignments
    ]
    if len({assignment.side for assignment in touched}) < 2:
        assignment = touched[0] if touched else _new_cluster(group[0], held_out)
        return {item.id: assignment for item in group}
    own = {item.id: links.get(item.id, set()) for item in group}
    links = _with_pairs(own, near_duplicates(_questions(group), NEAR_DUPLICATE))
    assigned: dict[str, Assignment] = {}
    for item in group:
        others = (assigned.get(id) or assignments.get(id) for id in sorted(links[item.id]))
        sides = [assignment for assignment in others if assignment]
        if len({assignment.side for assignment in sides}) < 2:
            assigned[item.id] = sides[0] if sides else _new_cluster(item, held_out)
    return assigned


def _new_cluster(first: SplitItem, held_out: float) -> Assignment:
    """Return a new cluster; a hash of its question draws the side, alike on every machine."""
    digest = hashlib.sha256(normalise_text(first.question).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    cluster = "c-" + hashlib.sha256(first.id.encode()).hexdigest()[:12]
    return Assignment(cluster, "held_out" if share < held_out else "train")


def _links(items: Iterable[SplitItem], assignments: Mapping[str, Assignment]) -> Links:
    """Return each item's links: the next of its conversation, and near-duplicate questions.

    Of near-duplicates only those of a new item and an assigned one are here: new ones among each
    other are grouped without naming every pair (`_groups`), and what is assigned stays.
    """
    items = list(items)
    last: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for item in items:
        if item.conversation_id in last:
            pairs.append((last[item.conversation_id], item.id))
        last[item.conversation_id] = item.id
    near = near_duplicates(_questions(items), NEAR_DUPLICATE, known=assignments.keys())
    return _with_pairs({}, [*pairs, *near])


def _with_pairs(links: Links, pairs: Iterable[tuple[str, str]]) -> Links:
    """Return these links and those of the pairs, both ways."""
    linked = defaultdict(set, {id: set(others) for id, others in links.items()})
    for first, second in pairs:
        linked[first].add(second)
        linked[second].add(first)
    return linked


def _questions(items: Iterable[SplitItem]) -> dict[str, str]:
    return {item.id: item.question for item in items}


def _groups(items: Sequence[SplitItem], links: Links) -> list[list[SplitItem]]:
    """Return the new items in groups of those that are linked to each other (union-find), oldest
    first."""
    order = {item.id: n for n, item in enumerate(items)}
    parent = list(range(len(items)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    for near in near_duplicate_groups(_questions(items), NEAR_DUPLICATE):
        for id in near[1:]:
            join(order[near[0]], order[id])
    for id, n in order.items():
        for other in links.get(id, ()):
            if other in order:
                join(n, order[other])
    groups: dict[int, list[SplitItem]] = defaultdict(list)
    for n, item in enumerate(items):
        groups[root(n)].append(item)
    return list(groups.values())


def _load_assignments(store: Store) -> dict[str, Assignment]:
    rows = store.rows(
        """select item, cluster, side from cluster_member join split using (cluster)
        order by cluster_member.rowid"""
    )
    return {row["item"]: Assignment(row["cluster"], row["side"]) for row in rows}


def split_items(store: Store, message_ids: Iterable[str]) -> list[SplitItem]:
    """Return answers as items of the split, in this order, without those that are not there."""
    ids = list(message_ids)
    exchanges = store.exchanges(ids)
    return [
        SplitItem(id, exchanges[id].answer.conversation_id, exchanges[id].question)
        for id in ids
        if id in exchanges
    ]


def _save(store: Store, assigned: Mapping[str, Assignment]) -> None:
    with store.write() as db:
        for assignment in dict.fromkeys(assigned.values()):
            db.execute(
                "insert or ignore into split (cluster, side, created_at) values (?, ?, ?)",
                (assignment.cluster, assignment.side, now()),
            )
        for id, assignment in assigned.items():
            db.insert("cluster_member", {"item": id, "cluster": assignment.cluster})
