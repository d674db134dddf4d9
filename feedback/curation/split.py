"""What trains and what is held out: decided by cluster, once and for ever.

A cluster is a conversation and everything that nearly repeats one of its questions. A newcomer
joins the cluster it touches; one that touches clusters of both sides goes to neither.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from feedback.curation.rows import Side
from feedback.exemplars import asked
from feedback.ids import now
from feedback.similarity import near_pairs, normalise
from feedback.store import NotFound, Store

NEAR = 0.6
"""Trigram similarity from which two questions count as one. Low on purpose: a cluster too large
costs a lumpier split, one too small leaks the answer to a held-out question into training."""


@dataclass(frozen=True)
class Item:
    """What is placed: an answer's message id, its conversation, and the question it answers."""

    id: str
    conversation_id: str
    question: str


@dataclass(frozen=True)
class Place:
    cluster: str
    side: Side


def assign(
    store: Store, items: Sequence[Item], *, held_out: float, keep: bool = True
) -> dict[str, Place | None]:
    """Where each item belongs; None for one that bridges train and held-out.

    Decisions taken before stand. New ones are written to the store unless ``keep`` is false; they
    follow from the items alone, so that looking first changes nothing.
    """
    places = _known(store)
    everyone = {item.id: item for item in [*_items(store, places), *items]}
    new = [item for item in everyone.values() if item.id not in places]
    links = _links(everyone.values())
    placed: dict[str, Place] = {}
    for group in _groups([item.id for item in new], links):
        placed |= _place([everyone[id] for id in group], links, {**places, **placed}, held_out)
    if keep:
        _keep(store, placed)
    places |= placed
    return {item.id: places.get(item.id) for item in items}


def _place(
    group: Sequence[Item],
    links: Mapping[str, set[str]],
    places: Mapping[str, Place],
    held_out: float,
) -> dict[str, Place]:
    """Places for newcomers that touch each other: all in one cluster if that is possible."""
    touched = [places[id] for item in group for id in sorted(links[item.id]) if id in places]
    if len({place.side for place in touched}) < 2:
        place = touched[0] if touched else _new_cluster(group[0], held_out)
        return {item.id: place for item in group}
    placed: dict[str, Place] = {}
    for item in group:
        so_far = {**places, **placed}
        sides = [so_far[id] for id in sorted(links[item.id]) if id in so_far]
        if len({place.side for place in sides}) < 2:
            placed[item.id] = sides[0] if sides else _new_cluster(item, held_out)
    return placed


def _new_cluster(first: Item, held_out: float) -> Place:
    """The question alone decides, not chance: the same questions split alike everywhere."""
    digest = hashlib.sha256(normalise(first.question).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    cluster = "c-" + hashlib.sha256(first.id.encode()).hexdigest()[:12]
    return Place(cluster, "held_out" if share < held_out else "train")


def _links(items: Iterable[Item]) -> dict[str, set[str]]:
    """Who touches whom: the next of the same conversation, and near-duplicate questions."""
    items = list(items)
    links: dict[str, set[str]] = defaultdict(set)
    last: dict[str, str] = {}
    pairs = list(near_pairs({item.id: item.question for item in items}, NEAR))
    for item in items:
        if item.conversation_id in last:
            pairs.append((last[item.conversation_id], item.id))
        last[item.conversation_id] = item.id
    for one, other in pairs:
        links[one].add(other)
        links[other].add(one)
    return links


def _groups(ids: Sequence[str], links: Mapping[str, set[str]]) -> list[list[str]]:
    """The newcomers, those together that touch each other directly or through newcomers."""
    order = {id: n for n, id in enumerate(ids)}
    parent = {id: id for id in ids}

    def root(id: str) -> str:
        while parent[id] != id:
            parent[id] = parent[parent[id]]
            id = parent[id]
        return id

    for id in ids:
        for other in links.get(id, ()):
            if other in order:
                first, second = sorted((root(id), root(other)), key=order.__getitem__)
                parent[second] = first
    groups: dict[str, list[str]] = defaultdict(list)
    for id in ids:
        groups[root(id)].append(id)
    return list(groups.values())


def _known(store: Store) -> dict[str, Place]:
    rows = store.rows(
        """select item, cluster, side from cluster_member join split using (cluster)
        order by cluster_member.rowid"""
    )
    return {row["item"]: Place(row["cluster"], row["side"]) for row in rows}


def _items(store: Store, ids: Iterable[str]) -> list[Item]:
    """The items placed before, those of them whose messages are still there."""
    items = []
    for id in ids:
        try:
            thread = store.thread(id)
        except NotFound:
            continue
        items.append(Item(id, thread[-1].conversation_id, asked(thread)[0]))
    return items


def _keep(store: Store, placed: Mapping[str, Place]) -> None:
    with store.write() as db:
        for place in dict.fromkeys(placed.values()):
            db.execute(
                "insert or ignore into split (cluster, side, created_at) values (?, ?, ?)",
                (place.cluster, place.side, now()),
            )
        for id, place in placed.items():
            db.insert("cluster_member", {"item": id, "cluster": place.cluster})
