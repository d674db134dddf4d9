"""Groups texts by near-duplicates, exactly: what is in one group already is not compared again."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from feedback.similarity import trigrams

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
Signatures = np.ndarray[tuple[int, int], np.dtype[np.uint64]]

_SIGNATURE_WORDS, _FIRST_WORDS = 8, 2
"""Of 64 bits; the first ones are enough for most pairs."""
_MAX_PAIRS = 1_000_000
"""So many pairs are compared in one step: some 50 MB."""
_MANY_GROUPS = 50


def near_duplicate_groups(texts: Mapping[str, str], threshold: float) -> list[list[str]]:
    """Return the keys in groups: the connected components of the near-duplicates' pairs.

    As in `near_duplicates` only texts that share one of their rarest trigrams are compared, and of
    these only those of different groups, most of them by a signature that never hides a pair.
    """
    keys_of: dict[frozenset[str], list[str]] = defaultdict(list)
    for key, text in texts.items():
        keys_of[trigrams(text)].append(key)
    groups = _Groups(list(keys_of), threshold)
    lists = list(_lists_of_rarest(list(keys_of), threshold))
    # Only neighbours in the lists at first: that joins nearly all of a group.
    for batch in _batches((members[:-1], members[1:]) for members in lists):
        groups.join_near(*batch)
    for batch in _batches(pair for members in lists for pair in groups.pairs_apart(members)):
        groups.join_near(*batch)
    keys = list(keys_of.values())
    return [[key for n in members for key in keys[n]] for members in groups.members.values()]


def _batches(pairs: Iterable[tuple[Ints, Ints]]) -> Iterator[tuple[Ints, Ints]]:
    """Put small arrays of pairs together: an array costs more than a pair."""
    batch: list[tuple[Ints, Ints]] = []
    waiting = 0
    for pair in pairs:
        batch.append(pair)
        waiting += len(pair[0])
        if waiting >= _MAX_PAIRS:
            yield _concatenated(batch)
            batch, waiting = [], 0
    if batch:
        yield _concatenated(batch)


def _concatenated(batch: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    return np.concatenate([one for one, _ in batch]), np.concatenate([two for _, two in batch])


def _lists_of_rarest(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[Ints]:
    """Yield, for each trigram, the numbers of the sets that have it among their rarest (prefix
    filtering: Chaudhuri et al. 2006, Bayardo et al. 2007)."""
    common = Counter(gram for grams in sets for gram in grams)
    index: dict[str, list[int]] = defaultdict(list)
    for number, grams in enumerate(sets):
        rarest = sorted(grams, key=lambda gram: (common[gram], gram))
        for gram in rarest[: len(grams) - math.ceil(threshold * len(grams)) + 1]:
            index[gram].append(number)
    return (np.array(numbers) for numbers in index.values() if len(numbers) > 1)


class _Groups:
    """Holds the groups of some sets so far; near sets are joined."""

    def __init__(self, sets: Sequence[frozenset[str]], threshold: float) -> None:
        self.sets, self.threshold = sets, threshold
        self.sizes = np.array([len(grams) for grams in sets])
        self.signatures = _signatures(sets)
        self.group = np.arange(len(sets))
        self.members = {number: [number] for number in range(len(sets))}

    def join_near(self, first: Ints, second: Ints) -> None:
        """Join the groups of those pairs (first[i], second[i]) that are near."""
        apart = self.group[first] != self.group[second]
        first, second = first[apart], second[apart]
        for words in (self.signatures[:_FIRST_WORDS], self.signatures):
            possible = self._may_be_near(first, second, words)
            first, second = first[possible], second[possible]
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            if self.group[one] != self.group[other] and self._is_near(one, other):
                self._join(int(self.group[one]), int(self.group[other]))

    def pairs_apart(self, numbers: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Yield all pairs of these that are in different groups, in parts, each as two arrays."""
        groups = self.group[numbers]
        if (groups == groups[0]).all():
            return
        numbers = numbers[np.argsort(groups)]
        starts = np.flatnonzero(np.diff(self.group[numbers])) + 1
        step = max(1, _MAX_PAIRS // len(numbers))
        if len(starts) < _MANY_GROUPS:  # each group with all that come after it
            bounds = [0, *starts.tolist()]
            rows = [
                (low, min(low + step, end), end)
                for begin, end in itertools.pairwise(bounds)
                for low in range(begin, end, step)
            ]
        else:
            rows = [(low, low + step, low) for low in range(0, len(numbers), step)]
        for low, high, after in rows:
            first, second = numbers[low:high], numbers[after:]
            one, other = np.nonzero(self.group[first][:, None] != self.group[second][None, :])
            yield first[one], second[other]

    def _may_be_near(
        self, first: Ints, second: Ints, signatures: Signatures
    ) -> np.ndarray[tuple[int], np.dtype[np.bool]]:
        """Tell which pairs are near as far as signatures tell: a bit of one set that the other
        lacks is at least one trigram that is not shared."""
        total = self.sizes[first] + self.sizes[second]
        only_first = np.zeros(len(first), np.int64)
        only_second = np.zeros(len(first), np.int64)
        for word in signatures:
            one, other = word[first], word[second]
            only_first += np.bitwise_count(one & ~other)
            only_second += np.bitwise_count(other & ~one)
        shared = np.minimum(self.sizes[first] - only_first, self.sizes[second] - only_second)
        return np.asarray(shared * (1 + self.threshold) >= self.threshold * total - 1e-6)

    def _is_near(self, one: int, other: int) -> bool:
        first, second = self.sets[one], self.sets[other]
        shared = len(first & second)
        return shared / (len(first) + len(second) - shared) >= self.threshold

    def _join(self, one: int, other: int) -> None:
        small, large = sorted((one, other), key=lambda group: len(self.members[group]))
        self.group[self.members[small]] = large
        self.members[large] += self.members.pop(small)


def _signatures(
    sets: Sequence[frozenset[str]],
) -> Signatures:
    """Return a bit for each trigram of each set, shape (words, sets); some trigrams share one."""
    signatures = np.zeros((_SIGNATURE_WORDS, len(sets)), np.uint64)
    for number, grams in enumerate(sets):
        bits = 0
        for gram in grams:
            bits |= 1 << hash(gram) % (64 * _SIGNATURE_WORDS)
        signatures[:, number] = [
            bits >> 64 * word & 0xFFFFFFFFFFFFFFFF for word in range(_SIGNATURE_WORDS)
        ]
    return signatures
