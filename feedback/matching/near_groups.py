"""Groups texts by near-duplicates, exactly, at a small part of the cost of comparing all pairs.

Neighbours in a few orders of MinHash join nearly all of each group. What is in one group already is
not compared again, and of the other pairs blocks of like texts are ruled out at once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from operator import itemgetter

import numpy as np

from feedback.similarity import trigrams

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int], np.dtype[np.bool]]
BitRows = np.ndarray[tuple[int, int], np.dtype[np.bool]]
Signatures = np.ndarray[tuple[int, int], np.dtype[np.uint64]]

_SIGNATURE_WORDS, _FIRST_WORDS = 8, 2
"""Of 64 bits; the first ones are enough for most pairs."""
_MAX_PAIRS = 200_000
"""So many pairs are compared in one step: some 20 MB."""
_ORDERS, _HASHES = 16, 3
"""So many orders, each by so many hashes. Few pairs of a group lie apart in all of them; those cost
time but are found."""
_BLOCK, _MAX_BLOCKS = 32, 4000
"""So many sets make a block, and more where there would be too many blocks."""
_BLOCK_BITS = 4096


def near_duplicate_groups(texts: Mapping[str, str], threshold: float) -> list[list[str]]:
    """Return the keys in groups: the connected components of the near-duplicates' pairs.

    As in `near_duplicates` only texts that share one of their rarest trigrams are compared, and of
    these only those of different groups, most of them by a signature that never hides a pair.
    """
    keys_of: dict[frozenset[str], list[str]] = defaultdict(list)
    for key, text in sorted(texts.items(), key=itemgetter(1)):
        keys_of[trigrams(text)].append(key)
    if not keys_of:
        return []
    sets = _Sets(list(keys_of), threshold)
    groups = _Groups(sets)
    for order in sets.orders():
        groups.join_near(order[:-1], order[1:])
    for first, second in _pairs_apart(sets, groups):
        groups.join_near(first, second)
    keys = list(keys_of.values())
    return [[key for n in members for key in keys[n]] for members in groups.members.values()]


class _Sets:
    """Holds sets of trigrams as numbers, the rarest trigram's first, and bounds what they share."""

    def __init__(self, sets: Sequence[frozenset[str]], threshold: float) -> None:
        self.sets, self.threshold = sets, threshold
        common = Counter(chain.from_iterable(sets))
        rank = {gram: n for n, gram in enumerate(sorted(common, key=lambda g: (common[g], g)))}
        self.sizes = np.array([len(grams) for grams in sets], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        numbers = (sorted(map(rank.__getitem__, grams)) for grams in sets)
        self.grams = np.fromiter(chain.from_iterable(numbers), np.int64, int(self.starts[-1]))
        packed = np.packbits(self.bit_rows(np.arange(len(sets)), 64 * _SIGNATURE_WORDS), axis=1)
        self.signatures: Signatures = np.ascontiguousarray(packed.view(np.uint64).T)
        """A bit for each trigram of each set, shape (words, sets); some trigrams share one."""

    def bit_rows(self, numbers: Ints, bits: int) -> BitRows:
        """Return these sets as rows of so many bits, shape (numbers, bits)."""
        rows = np.zeros((len(numbers), bits), np.bool)
        columns = np.concatenate([self.grams[self.starts[n] : self.starts[n + 1]] for n in numbers])
        rows[np.repeat(np.arange(len(numbers)), self.sizes[numbers]), columns % bits] = True
        return rows

    def rarest(self) -> tuple[Ints, Ints]:
        """Return (trigram, set) for the rarest of each set, in the order of the trigrams (prefix
        filtering: Chaudhuri et al. 2006, Bayardo et al. 2007)."""
        number = np.repeat(np.arange(len(self.sets)), self.sizes)
        position = np.arange(len(number)) - self.starts[number]
        prefix = self.sizes - np.ceil(self.threshold * self.sizes).astype(np.int64) + 1
        rare = position < prefix[number]
        gram, number = self.grams[rare], number[rare]
        order = np.argsort(gram, kind="stable")
        return gram[order], number[order]

    def orders(self) -> Iterator[Ints]:
        """Yield orders of all sets in which like ones are often neighbours (MinHash: Broder
        1997)."""
        rng, grams = np.random.default_rng(0), int(self.grams.max()) + 1
        for _ in range(_ORDERS):
            hashes = (rng.permutation(grams)[self.grams] for _ in range(_HASHES))
            yield np.lexsort([np.minimum.reduceat(one, self.starts[:-1]) for one in hashes])

    def may_be_near(self, first: Ints, second: Ints, words: int) -> Bools:
        """Tell which pairs are near as far as signatures tell: a bit of one set that the other
        lacks is at least one trigram that is not shared."""
        total = self.sizes[first] + self.sizes[second]
        only_first = np.zeros(len(first), np.int64)
        only_second = np.zeros(len(first), np.int64)
        for word in self.signatures[:words]:
            one, other = word[first], word[second]
            only_first += np.bitwise_count(one & ~other)
            only_second += np.bitwise_count(other & ~one)
        shared = np.minimum(self.sizes[first] - only_first, self.sizes[second] - only_second)
        return np.asarray(shared * (1 + self.threshold) >= self.threshold * total - 1e-6)

    def is_near(self, one: int, other: int) -> bool:
        first, second = self.sets[one], self.sets[other]
        shared = len(first & second)
        return shared / (len(first) + len(second) - shared) >= self.threshold

    def blocks_may_be_near(self, blocks: Sequence[Ints]) -> BitRows:
        """Tell which blocks may hold the two sets of a near pair, shape (blocks, blocks).

        What all sets of a block have, and none of the other's, those of a pair do not share.
        """
        in_all, in_any = np.zeros((2, len(blocks), _BLOCK_BITS), np.float32)
        for n, block in enumerate(blocks):
            rows = self.bit_rows(block, _BLOCK_BITS)
            in_all[n], in_any[n] = rows.all(axis=0), rows.any(axis=0)
        only = in_all.sum(axis=1)[:, None] - in_all @ in_any.T
        least = np.array([self.sizes[block].min() for block in blocks], np.float32)
        most = np.array([self.sizes[block].max() for block in blocks], np.float32)
        # A near pair of sizes x and y shares at least t/(1 + t) (x + y): so what x has alone is at
        # most (x - t y)/(1 + t), and what both have alone at most (1 - t)/(1 + t) (x + y).
        t = self.threshold
        room = most[:, None] - t * least - (1 + t) * only
        both = (1 - t) * (most[:, None] + most) - (1 + t) * (only + only.T)
        return np.asarray((room > -1e-3) & (room.T > -1e-3) & (both > -1e-3))


class _Groups:
    """Holds the groups of some sets so far; near sets are joined."""

    def __init__(self, sets: _Sets) -> None:
        self.sets = sets
        self.group = np.arange(len(sets.sets))
        self.members = {number: [number] for number in range(len(sets.sets))}

    def join_near(self, first: Ints, second: Ints) -> None:
        """Join the groups of those pairs (first[i], second[i]) that are near."""
        apart = self.group[first] != self.group[second]
        first, second = first[apart], second[apart]
        for words in (_FIRST_WORDS, _SIGNATURE_WORDS):
            possible = self.sets.may_be_near(first, second, words)
            first, second = first[possible], second[possible]
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            if self.group[one] != self.group[other] and self.sets.is_near(one, other):
                self._join(int(self.group[one]), int(self.group[other]))

    def ranges(self, ordered: Ints, size: int) -> tuple[Ints, Ints]:
        """Return the least and the greatest group of each block of so many."""
        groups, starts = self.group[ordered], np.arange(0, len(ordered), size)
        return np.minimum.reduceat(groups, starts), np.maximum.reduceat(groups, starts)

    def _join(self, one: int, other: int) -> None:
        small, large = sorted((one, other), key=lambda group: len(self.members[group]))
        self.group[self.members[small]] = large
        self.members[large] += self.members.pop(small)


def _pairs_apart(sets: _Sets, groups: _Groups) -> Iterator[tuple[Ints, Ints]]:
    """Yield the pairs that share one of their rarest trigrams and are in different groups, but for
    those that their blocks rule out; in parts, each as two arrays."""
    gram, number = sets.rarest()
    # A block is a run of one group's members, in alphabetical order: alike.
    by_size = sorted(groups.members.values(), key=len)
    ordered = np.array(list(chain.from_iterable(map(sorted, by_size))))
    size = max(_BLOCK, -(-len(ordered) // _MAX_BLOCKS))
    blocks = [ordered[low : low + size] for low in range(0, len(ordered), size)]
    low, high = groups.ranges(ordered, size)
    possible = sets.blocks_may_be_near(blocks)
    possible &= (low[:, None] != high) | (high[:, None] != low)
    position = np.argsort(ordered)[number]
    order = np.lexsort((position, gram))
    gram, number, block = gram[order], number[order], position[order] // size
    # A run is what a trigram's list has of one block.
    new_list, new_block = gram[1:] != gram[:-1], block[1:] != block[:-1]
    runs = np.concatenate([[0], np.flatnonzero(new_list | new_block) + 1])
    lengths = np.diff(runs, append=len(gram))
    lists = np.concatenate(
        [[0], np.flatnonzero(gram[runs][1:] != gram[runs][:-1]) + 1, [len(runs)]]
    )
    for one, other in _run_pairs(block[runs], lists, possible):
        ends = np.cumsum(lengths[one] * lengths[other])
        cuts = np.searchsorted(ends, np.arange(_MAX_PAIRS, ends[-1], _MAX_PAIRS))
        for some, others in zip(np.split(one, cuts), np.split(other, cuts), strict=True):
            low, high = groups.ranges(ordered, size)  # as they are by now
            one_block, other_block = block[runs[some]], block[runs[others]]
            apart = (low[one_block] != high[other_block]) | (high[one_block] != low[other_block])
            first, second = _expand(runs, lengths, some[apart], others[apart])
            yield number[first], number[second]


def _run_pairs(block: Ints, lists: Ints, possible: BitRows) -> Iterator[tuple[Ints, Ints]]:
    """Yield the pairs of runs of one list whose blocks are possible, many at a time."""
    batch: list[tuple[Ints, Ints]] = []
    waiting = 0
    for low, high in pairwise(lists.tolist()):
        step = max(1, _MAX_PAIRS // (high - low))
        for row in range(low, high, step):
            rows = possible[block[row : min(row + step, high)]]
            one, other = np.nonzero(rows[:, block[low:high]])
            one, other = one + row, other + low
            keep = one <= other
            if keep.any():
                batch.append((one[keep], other[keep]))
                waiting += len(batch[-1][0])
            if waiting >= _MAX_PAIRS:
                yield _concatenated(batch)
                batch, waiting = [], 0
    if batch:
        yield _concatenated(batch)


def _concatenated(batch: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    return np.concatenate([one for one, _ in batch]), np.concatenate([two for _, two in batch])


def _expand(runs: Ints, lengths: Ints, one: Ints, other: Ints) -> tuple[Ints, Ints]:
    """Return every pair of two positions, of a member of run ``one[i]`` and one of ``other[i]``."""
    counts = lengths[one] * lengths[other]
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    wide = np.repeat(lengths[other], counts)
    first = np.repeat(runs[one], counts) + offset // wide
    second = np.repeat(runs[other], counts) + offset % wide
    return first[first < second], second[first < second]
