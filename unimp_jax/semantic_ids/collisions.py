"""A last level that tells items with equal codes apart, as TIGER (arXiv:2305.05065, section 3.1) does.

Where more items share their codes than the last level can number, the surplus moves to other codes: the tree of codes
is climbed until there is room below, and descended again, each time by the nearest codeword below which there is room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

CHUNK = 4096  # items whose distances to all codewords are held at once

Distances: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(items int [N], their first l codes int32 [N, l]) -> float [N, K]: from each item's residual after these l levels,
the distances to all codewords of the next level. Any increasing function of a distance will do."""


def residual_distances(points_ID: np.ndarray, codebooks_LKD: np.ndarray) -> Distances:
    """Squared distances in a residual code space, float32, such as `Quantised` describes."""

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
    """Distinct ids: the codes, and a number from 0 for each item among those that share them.

    Where more than `last` items share their codes, the `last` that are nearest to their last codeword keep them (of
    equals, the first). The others move one after the other, in the order of items.

    Args:
      codes: int [I, L], each at least 0 and below `size`.
      last: codes of the level that is added.
      size: codes of each level before.
      distances: is asked only about items that share their codes with more than `last` - 1 others.

    Returns:
      int32 [I, L + 1].

    Raises:
      ValueError: codes are not of two axes or not in range, or `size`^L * `last` ids are fewer than the items.
    """
    codes_IL = np.array(codes, np.int32)
    if codes_IL.ndim != 2 or not codes_IL.shape[1] or last < 1:
        raise ValueError(f"codes of shape {codes_IL.shape} and last = {last}: [items, levels] and at least 1 is right")
    if codes_IL.size and not 0 <= codes_IL.min() <= codes_IL.max() < size:
        raise ValueError(f"codes from {codes_IL.min()} to {codes_IL.max()}, but those of a level are 0 to {size - 1}")
    num_items, levels = codes_IL.shape
    num_ids = size**levels * last
    if num_ids < num_items:
        raise ValueError(
            f"{num_items} items, but {levels} levels of {size} codes and a last one of {last} make {num_ids} ids: "
            f"raise last to {-(-num_items // size**levels)} or more, or use more codes or levels"
        )
    if num_ids >= 2**62:
        raise ValueError(
            f"{levels} levels of {size} codes and one of {last}: more than 2^62 ids cannot be distinguished"
        )

    surplus = _surplus(codes_IL, last, size, distances)
    if len(surplus):
        tree = _Tree(np.delete(_keys(codes_IL, size), surplus), levels, size, last)
        for item in surplus:
            codes_IL[item] = _move(item, codes_IL[item], tree, distances)
    keys_I = _keys(codes_IL, size)
    order_I = np.argsort(keys_I, kind="stable")
    numbers_I = np.empty(num_items, np.int32)
    numbers_I[order_I] = _number(keys_I[order_I])
    return np.concatenate([codes_IL, numbers_I[:, None]], axis=1)


def _keys(codes_Nl: np.ndarray, size: int) -> np.ndarray:
    """One number for each row of codes, in lexicographic order: int64 [N]."""
    keys_N = np.zeros(len(codes_Nl), np.int64)
    for codes_N in codes_Nl.T:
        keys_N = keys_N * size + codes_N
    return keys_N


def _number(sorted_N: np.ndarray) -> np.ndarray:
    """0, 1, … within each run of equal values."""
    starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    return np.arange(len(sorted_N)) - np.repeat(starts, np.diff(starts, append=len(sorted_N)))


def _surplus(codes_IL: np.ndarray, last: int, size: int, distances: Distances) -> np.ndarray:
    """The items that cannot keep their codes, ascending."""
    _, group_I, counts = np.unique(_keys(codes_IL, size), return_inverse=True, return_counts=True)
    crowded = np.flatnonzero(counts[group_I] > last)
    own = np.empty(len(crowded))
    for start in range(0, len(crowded), CHUNK):
        items_N = crowded[start : start + CHUNK]
        found_NK = distances(items_N, codes_IL[items_N, :-1])
        own[start : start + CHUNK] = found_NK[np.arange(len(items_N)), codes_IL[items_N, -1]]
    order = np.lexsort((own, group_I[crowded]))
    return np.sort(crowded[order][_number(group_I[crowded][order]) >= last])


class _Tree:
    """How many more items fit below each prefix of codes."""

    def __init__(self, kept: np.ndarray, levels: int, size: int, last: int):
        """`kept`: keys of the items that are already placed."""
        self.kept, self.levels, self.size, self.last = np.sort(kept), levels, size, last
        self.rooms = dict[tuple[int, ...], np.ndarray]()

    def room(self, prefix: tuple[int, ...]) -> np.ndarray:
        """Below each code that may follow a prefix: int64 [size]."""
        if prefix not in self.rooms:
            span = self.size ** (self.levels - len(prefix) - 1)
            first = _keys(np.array([prefix], np.int64), self.size)[0] * self.size
            bounds = (first + np.arange(self.size + 1)) * span
            self.rooms[prefix] = span * self.last - np.diff(np.searchsorted(self.kept, bounds))
        return self.rooms[prefix]

    def place(self, codes: tuple[int, ...]) -> None:
        """Counts one more item with these codes."""
        for depth, code in enumerate(codes):
            self.room(codes[:depth])[code] -= 1


def _move(item: int, codes_L: np.ndarray, tree: _Tree, distances: Distances) -> tuple[int, ...]:
    """The codes that an item gets, which `tree` counts from now on."""
    prefix = tuple(codes_L[:-1].tolist())
    while not tree.room(prefix).any():
        prefix = prefix[:-1]
    while len(prefix) < tree.levels:
        found_K = distances(np.array([item]), np.array([prefix], np.int32))[0]
        prefix += (int(np.argmin(np.where(tree.room(prefix) > 0, found_K, np.inf))),)
    tree.place(prefix)
    return prefix
