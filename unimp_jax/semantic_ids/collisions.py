"""A last level that distinguishes items with equal codes, as in TIGER (arXiv:2305.05065, section 3.1).

If more items share their codes than the last level can number, the surplus moves to other codes: the search climbs the
tree of codes until there is room below, and descends again, each time to the nearest codeword below which there is
room.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

CHUNK = 4096  # items whose distances to all codewords are held at once

Codes: TypeAlias = tuple[int, ...]
Distances: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(items int [N], their first l codes int32 [N, l]) -> float [N, K]: distances from each item's residual after these l
levels to all codewords of the next level. Any increasing function of a distance is sufficient."""


def residual_distances(points_ID: np.ndarray, codebooks_LKD: np.ndarray) -> Distances:
    """Returns a function for squared distances in a residual code space, float32, such as that of `Quantised`."""

    def distances(items_N: np.ndarray, prefixes_Nl: np.ndarray) -> np.ndarray:
        level = prefixes_Nl.shape[1]
        residual_ND = points_ID[items_N]
        for codebook_KD, codes_N in zip(codebooks_LKD[:level], prefixes_Nl.T, strict=True):
            residual_ND = residual_ND - codebook_KD[codes_N]
        products_NK = residual_ND @ codebooks_LKD[level].T
        norms_K = np.square(codebooks_LKD[level]).sum(axis=1)
        return np.square(residual_ND).sum(axis=1)[:, None] - 2 * products_NK + norms_K

    return distances


def resolve(codes: np.ndarray, last: int = 32, *, size: int = 512, distances: Distances) -> np.ndarray:
    """Returns distinct ids: the codes, and a number from 0 for each item among those that share them.

    If more than `last` items share their codes, the `last` nearest to their last codeword keep them (ties by the first
    item). The others move one after the other, in the order of items.

    Args:
      codes: int [I, L], each at least 0 and below `size`.
      last: Number of codes of the additional level.
      size: Number of codes of each other level.
      distances: Only called for items that share their codes with more than `last` - 1 others.

    Returns:
      int32 [I, L + 1].

    Raises:
      ValueError: Codes do not have two axes or are out of range, or there are fewer ids, `size`^L * `last`, than items.
    """
    codes_IL = np.array(codes, np.int32)
    if codes_IL.ndim != 2 or not codes_IL.shape[1] or last < 1:
        raise ValueError(
            f"codes have shape {codes_IL.shape} and last is {last}; expected [items, levels] and at least 1"
        )
    if codes_IL.size and not 0 <= codes_IL.min() <= codes_IL.max() < size:
        raise ValueError(
            f"codes range from {codes_IL.min()} to {codes_IL.max()}; they must be between 0 and {size - 1}"
        )
    num_items, levels = codes_IL.shape
    num_ids = size**levels * last
    if num_ids < num_items:
        raise ValueError(
            f"{num_items} items need more than the {num_ids} ids of {levels} levels of {size} codes and a last "
            f"one of {last}; raise last to {-(-num_items // size**levels)} or more, or use more codes or levels"
        )
    if num_ids >= 2**62:
        raise ValueError(
            f"{levels} levels of {size} codes and one of {last} make more than 2^62 ids, which cannot be distinguished"
        )

    surplus = _surplus(codes_IL, last, size, distances)
    if len(surplus):
        room = [size ** (levels - length) * last for length in range(levels + 1)]
        below: Counter[Codes] = Counter()
        for kept in np.delete(codes_IL, surplus, axis=0).tolist():
            below.update(tuple(kept[:length]) for length in range(levels + 1))
        for item in surplus:
            codes_IL[item] = _move(item, codes_IL[item], below, room, distances)
    keys_I = _keys(codes_IL, size)
    order_I = np.argsort(keys_I, kind="stable")
    numbers_I = np.empty(num_items, np.int32)
    numbers_I[order_I] = _number(keys_I[order_I])
    return np.concatenate([codes_IL, numbers_I[:, None]], axis=1)


def _keys(codes_Nl: np.ndarray, size: int) -> np.ndarray:
    """Returns one number for each row of codes, in lexicographic order: int64 [N]."""
    keys_N = np.zeros(len(codes_Nl), np.int64)
    for codes_N in codes_Nl.T:
        keys_N = keys_N * size + codes_N
    return keys_N


def _number(sorted_N: np.ndarray) -> np.ndarray:
    """Returns 0, 1, … within each run of equal values."""
    starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    return np.arange(len(sorted_N)) - np.repeat(starts, np.diff(starts, append=len(sorted_N)))


def _surplus(codes_IL: np.ndarray, last: int, size: int, distances: Distances) -> np.ndarray:
    """Returns the items that cannot keep their codes, in ascending order."""
    _, group_I, counts = np.unique(_keys(codes_IL, size), return_inverse=True, return_counts=True)
    crowded = np.flatnonzero(counts[group_I] > last)
    own = np.empty(len(crowded))
    for start in range(0, len(crowded), CHUNK):
        items_N = crowded[start : start + CHUNK]
        found_NK = distances(items_N, codes_IL[items_N, :-1])
        own[start : start + CHUNK] = found_NK[np.arange(len(items_N)), codes_IL[items_N, -1]]
    order = np.lexsort((own, group_I[crowded]))
    return np.sort(crowded[order][_number(group_I[crowded][order]) >= last])


def _move(item: int, codes_L: np.ndarray, below: Counter[Codes], room: Sequence[int], distances: Distances) -> Codes:
    """Returns the new codes of an item, and adds them to `below`, the number of items per prefix of codes, for all
    prefixes; `room` is the capacity of a prefix, by its length."""
    prefix: Codes = tuple(codes_L[:-1].tolist())
    while below[prefix] >= room[len(prefix)]:
        prefix = prefix[:-1]
    while len(prefix) < len(codes_L):
        found_K = distances(np.array([item]), np.array([prefix], np.int32))[0]
        nearest_first = ((*prefix, int(code)) for code in np.argsort(found_K, kind="stable"))
        prefix = next(codes for codes in nearest_first if below[codes] < room[len(codes)])
    below.update(prefix[:length] for length in range(len(prefix) + 1))
    return prefix
