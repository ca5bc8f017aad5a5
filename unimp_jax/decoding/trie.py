"""Every valid answer as a tree of tokens, in flat arrays: what a search may say next, and which item it has then said.

Built with NumPy, read on the device. Nodes are numbered level by level in the order of their tokens, so that a node's
children are neighbours, and so are all items below it.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

PAST = -1
"""Stands behind the end of an id that is shorter than others."""


@flax.struct.dataclass
class Trie:
    """I ids of at most `depth` tokens.

    Attributes:
      tokens: for each level l from 1 to depth, the token of every node: int32 [M_l]. `PAST` costs nothing to say.
      children: for each level from 0 on, where the children of every node begin in the next one: int32 [M_l + 1].
      leaves: for each level from 1 on, where the items below every node begin: int32 [M_l + 1].
      items: int32 [I], the item of every node of the last level.
      places: int32 [I], the other way round.
      branching: for each level from 0 on, the most children that a node has; fixed when a search is compiled.
    """

    tokens: tuple[jax.Array, ...]
    children: tuple[jax.Array, ...]
    leaves: tuple[jax.Array, ...]
    items: jax.Array
    places: jax.Array
    branching: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def depth(self) -> int:
        return len(self.tokens)


def build_trie(ids: np.ndarray, room: int = 0) -> Trie:
    """A trie of what may be said: of a catalogue, or of any set of answers.

    Items are added, or taken out of stock for all, by building anew; the model is not concerned. Tries of up to `room`
    items have arrays of one size, so that a compiled search goes on with them (branching is rounded up to a power of
    two for the same reason).

    Args:
      ids: int [I, depth], `PAST` behind the end of shorter ones.

    Raises:
      ValueError: no ids, one that occurs twice, one that begins another, or a negative token.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.size:
        raise ValueError(f"ids are of shape {ids.shape}: [items, tokens], none of them 0, is right")
    num_items, depth = ids.shape
    past = ids == PAST
    if (ids < PAST).any() or past[:, 0].any() or (past[:, :-1] & ~past[:, 1:]).any():
        raise ValueError("an id has a negative token, or none; only behind the end of shorter ids stands -1")
    order = _lexicographic(ids)
    ordered = ids[order]
    differs = np.ones((num_items, depth + 1), bool)  # from the id before, up to and with level l
    differs[:, 0] = np.arange(num_items) == 0
    differs[1:, 1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
    _refuse_ambiguous(ordered, differs, order)
    starts = [np.flatnonzero(differs[:, level]) for level in range(depth + 1)]  # the first item of every node
    tokens, children, leaves, branching = [], [], [], []
    for level in range(depth):
        below, size = starts[level + 1], max(room, num_items)
        begins = np.searchsorted(below, np.append(starts[level], num_items))
        widest = int(np.diff(begins).max())
        branching.append(min(1 << (widest - 1).bit_length(), size) if room else widest)
        tokens.append(_filled(ordered[below, level], size if room else len(below), 0))
        children.append(_filled(begins, (size if room and level else len(starts[level])) + 1, len(below)))
        leaves.append(_filled(np.append(below, num_items), (size if room else len(below)) + 1, num_items))
    places = np.empty(num_items, np.int32)
    places[order] = np.arange(num_items)
    size = max(room, num_items)
    return Trie(
        tokens=tuple(map(jnp.asarray, tokens)),
        children=tuple(map(jnp.asarray, children)),
        leaves=tuple(map(jnp.asarray, leaves)),
        items=jnp.asarray(_filled(order, size, -1)),
        places=jnp.asarray(_filled(places, size, size)),
        branching=tuple(branching),
    )


def _lexicographic(ids: np.ndarray) -> np.ndarray:
    """The order of the rows; tokens of all levels in one number where that fits, which sorts several times faster."""
    shifted = ids.astype(np.int64) + 1
    bits = [int(shifted[:, level].max()).bit_length() for level in range(ids.shape[1])]
    if sum(bits) > 63:
        return np.lexsort(ids.T[::-1])
    key = np.zeros(len(ids), np.int64)
    for level, width in enumerate(bits):
        key = (key << width) | shifted[:, level]
    return np.argsort(key, kind="stable")


def _refuse_ambiguous(ordered: np.ndarray, differs: np.ndarray, order: np.ndarray) -> None:
    """
    Raises:
      ValueError: an id occurs twice or begins another.
    """
    same = np.flatnonzero(~differs[:, -1])
    if len(same):
        one, other = order[same[0] - 1], order[same[0]]
        raise ValueError(f"items {one} and {other} have the same id {ordered[same[0]].tolist()}")
    # Among ordered rows, an id that begins others stands right before the first of them.
    shorter = ordered[:-1] == PAST
    begins = np.flatnonzero((shorter | (ordered[:-1] == ordered[1:])).all(axis=1) & shorter.any(axis=1))
    if len(begins):
        one, other = ordered[begins[0]], ordered[begins[0] + 1]
        raise ValueError(
            f"the id {one[one != PAST].tolist()} of item {order[begins[0]]} begins that of item "
            f"{order[begins[0] + 1]}, {other[other != PAST].tolist()}; end both with a token of their own"
        )


def _filled(values: np.ndarray, size: int, filling: int) -> np.ndarray:
    return np.concatenate([values, np.full(size - len(values), filling)]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Branches:
    """What may be said next by each of W beams of each prompt; C is the branching of their level.

    Attributes:
      tokens_BAWC: int32; [1, 1, 1, C] from the root, where it is the same for all.
      nodes_BAWC: int32, of the next level; [1, 1, 1, C] from the root.
      open_BAWC: bool, whether there is such a child, and below it an item that is not excluded.
    """

    tokens_BAWC: jax.Array
    nodes_BAWC: jax.Array
    open_BAWC: jax.Array


@flax.struct.dataclass
class Closed:
    """The items that a prompt must not be answered with, as a bitmap along the trie's last level, with counts.

    Attributes:
      words: uint32 [B, A, I / 32 + 1], a bit an item.
      before: int32 [B, A, I / 32 + 1], how many bits are set in the words before.
    """

    words: jax.Array
    before: jax.Array

    def first(self, count: int) -> jax.Array:
        """Whether the first items are closed: bool [B, A, count]."""
        bits_BAw32 = (self.words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1 > 0
        return bits_BAw32.reshape(*self.words.shape[:2], -1)[..., :count]

    def at(self, places_BAm: jax.Array) -> jax.Array:
        """Whether the items at these places are closed: bool [B, A, m]."""
        words_BAm = jnp.take_along_axis(self.words, places_BAm >> 5, axis=-1)
        return (words_BAm >> (places_BAm & 31).astype(jnp.uint32)) & 1 > 0

    def count(self, places_BAm: jax.Array) -> jax.Array:
        """How many items before these places are closed: int32 [B, A, m]."""
        words_BAm = jnp.take_along_axis(self.words, places_BAm >> 5, axis=-1)
        earlier_BAm = (jnp.uint32(1) << (places_BAm & 31).astype(jnp.uint32)) - 1
        within_BAm = jax.lax.population_count(words_BAm & earlier_BAm).astype(jnp.int32)
        return jnp.take_along_axis(self.before, places_BAm >> 5, axis=-1) + within_BAm


def close(trie: Trie, excluded_BAS: jax.Array) -> Closed:
    """The bitmap of items to exclude, int32 [B, A, S] in any order, padded with -1."""
    B, A, _ = excluded_BAS.shape
    size = trie.items.shape[0] // 32 + 1
    places_BAS = jnp.where(excluded_BAS >= 0, trie.places[jnp.maximum(excluded_BAS, 0)], 32 * size)
    mark = jax.vmap(jax.vmap(lambda places: jnp.zeros(32 * size, bool).at[places].set(True, mode="drop")))
    return _counted(mark(places_BAS).reshape(B, A, size, 32))


def close_all(trie: Trie, excluded_BAI: jax.Array) -> Closed:
    """The same of a mask of the items to exclude, bool [B, A, I], I as many as `trie.items` or fewer."""
    num_items, size = trie.items.shape[0], trie.items.shape[0] // 32 + 1
    whole_BAI = jnp.pad(excluded_BAI, ((0, 0), (0, 0), (0, num_items - excluded_BAI.shape[-1])))
    by_place_BAI = whole_BAI[..., jnp.maximum(trie.items, 0)] & (trie.items >= 0)
    filled = jnp.pad(by_place_BAI, ((0, 0), (0, 0), (0, 32 * size - num_items)))
    return _counted(filled.reshape(*excluded_BAI.shape[:2], size, 32))


def _counted(bits_BAw32: jax.Array) -> Closed:
    words_BAw = (bits_BAw32 << jnp.arange(32, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
    counts_BAw = bits_BAw32.sum(-1, dtype=jnp.int32)
    return Closed(words_BAw, jnp.cumsum(counts_BAw, axis=-1) - counts_BAw)


def branches(trie: Trie, level: int, nodes_BAW: jax.Array, closed: Closed | None = None) -> Branches:
    """The children of nodes of `level`."""
    if level == 0:
        nodes_BAW = jnp.zeros((1, 1, 1), jnp.int32)  # the root, for all
    begin_BAW, end_BAW = trie.children[level][nodes_BAW], trie.children[level][nodes_BAW + 1]
    reach_BAWC = begin_BAW[..., None] + jnp.arange(trie.branching[level])
    nodes_BAWC = jnp.minimum(reach_BAWC, trie.tokens[level].shape[0] - 1)
    open_BAWC = reach_BAWC < end_BAW[..., None]
    if closed is not None and trie.depth == 1:
        open_BAWC = open_BAWC & ~closed.first(trie.branching[0])[:, :, None]
    elif closed is not None and level == trie.depth - 1:  # a node is an item
        B, A = closed.words.shape[:2]
        open_BAWC &= ~closed.at(nodes_BAWC.reshape(B, A, -1)).reshape(nodes_BAWC.shape)
    elif closed is not None:
        B, A = closed.words.shape[:2]
        W = nodes_BAWC.shape[2]
        first_BAWC, last_BAWC = trie.leaves[level][nodes_BAWC], trie.leaves[level][nodes_BAWC + 1]
        bounds_BAWm = jnp.concatenate([first_BAWC, last_BAWC], axis=-1)
        bounds_BAm = jnp.broadcast_to(bounds_BAWm, (B, A, *bounds_BAWm.shape[2:])).reshape(B, A, -1)
        before_BAWC, after_BAWC = jnp.split(closed.count(bounds_BAm).reshape(B, A, W, -1), 2, axis=-1)
        open_BAWC = open_BAWC & (last_BAWC - first_BAWC > after_BAWC - before_BAWC)
    return Branches(trie.tokens[level][nodes_BAWC], nodes_BAWC, open_BAWC)
