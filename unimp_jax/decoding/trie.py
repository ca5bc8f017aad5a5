"""A trie of the token sequences of all valid answers in flat arrays: possible next tokens and their items.

Built with NumPy, read on the device. Nodes are numbered level by level in the order of their tokens, so that the
children of a node are contiguous, and so are all items below it.
"""

import dataclasses
from collections.abc import Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

PAST = -1
"""Padding after the end of ids that are shorter than others."""


@flax.struct.dataclass
class Trie:
    """A trie of I ids of at most `depth` tokens.

    Attributes:
      tokens: For each level l from 1 to depth, the token of every node, int32 [M_l]. `PAST` has log-probability 0.
      children: For each level from 0 on, the index in the next level of every node's first child, int32 [M_l + 1].
      leaves: For each level from 1 on, the index of the first item below every node, int32 [M_l + 1].
      items: int32 [I], the item of every node of the last level.
      branching: For each level from 0 on, the maximum number of children of a node; static when a search is compiled.
    """

    tokens: tuple[jax.Array, ...]
    children: tuple[jax.Array, ...]
    leaves: tuple[jax.Array, ...]
    items: jax.Array
    branching: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def depth(self) -> int:
        return len(self.tokens)


def build_trie(ids: np.ndarray) -> Trie:
    """Builds a trie of the valid answers: a catalogue or any other set of ids.

    To add items or remove them for all users, build a new trie; the model does not change.

    Args:
      ids: int [I, depth]; shorter ids are padded with `PAST`.

    Raises:
      ValueError: There are no ids, a duplicate id, an id that is a prefix of another, or a negative token.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.size:
        raise ValueError(f"ids have shape {ids.shape}; expected [items, tokens], with at least one item and one token")
    num_items, depth = ids.shape
    past = ids == PAST
    if (ids < PAST).any() or past[:, 0].any() or (past[:, :-1] & ~past[:, 1:]).any():
        raise ValueError("an id is empty or has a negative token; -1 may only pad the end of shorter ids")
    order = np.lexsort(ids.T[::-1])
    ordered = ids[order]
    differs = np.ones((num_items, depth + 1), bool)  # from the previous id, up to and including level l
    differs[:, 0] = np.arange(num_items) == 0
    differs[1:, 1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
    _refuse_ambiguous(ordered, differs, order)
    starts = [np.flatnonzero(differs[:, level]) for level in range(depth + 1)]  # the first item of every node
    children = [np.searchsorted(starts[n + 1], np.append(starts[n], num_items)) for n in range(depth)]

    def on_device(arrays: Iterable[np.ndarray]) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(array, jnp.int32) for array in arrays)

    return Trie(
        tokens=on_device(ordered[starts[level + 1], level] for level in range(depth)),
        children=on_device(children),
        leaves=on_device(np.append(starts[level + 1], num_items) for level in range(depth)),
        items=jnp.asarray(order, jnp.int32),
        branching=tuple(int(np.diff(begins).max()) for begins in children),
    )


def _refuse_ambiguous(ordered: np.ndarray, differs: np.ndarray, order: np.ndarray) -> None:
    """Raises ValueError if an id is a duplicate or a prefix of another."""
    same = np.flatnonzero(~differs[:, -1])
    if len(same):
        one, other = order[same[0] - 1], order[same[0]]
        raise ValueError(f"items {one} and {other} have the same id {ordered[same[0]].tolist()}")
    # Among ordered rows, an id that is a prefix of others directly precedes the first of them.
    shorter = ordered[:-1] == PAST
    begins = np.flatnonzero((shorter | (ordered[:-1] == ordered[1:])).all(axis=1) & shorter.any(axis=1))
    if len(begins):
        one, other = ordered[begins[0]], ordered[begins[0] + 1]
        raise ValueError(
            f"the id {one[one != PAST].tolist()} of item {order[begins[0]]} is a prefix of the id "
            f"{other[other != PAST].tolist()} of item {order[begins[0] + 1]}; end both with a token of their own"
        )


@dataclasses.dataclass(frozen=True)
class Branches:
    """The possible next tokens in each of W beams of each prompt; C is the branching of their level.

    Attributes:
      tokens_BAWC: int32; [1, 1, 1, C] at the root, where they are the same for all.
      nodes_BAWC: int32, nodes of the next level; [1, 1, 1, C] at the root.
      open_BAWC: bool, whether the child exists and leads to an item that is not excluded.
    """

    tokens_BAWC: jax.Array
    nodes_BAWC: jax.Array
    open_BAWC: jax.Array


def excluded_before(trie: Trie, excluded_BAI: jax.Array) -> jax.Array:
    """Counts the items to exclude, bool [B, A, I], among the first 0, 1, … I items of the last level: int32 [B, A, I +
    1]."""
    counts_BAI = jnp.cumsum(excluded_BAI[..., trie.items], axis=-1, dtype=jnp.int32)
    return jnp.pad(counts_BAI, ((0, 0), (0, 0), (1, 0)))


def branches(trie: Trie, level: int, nodes_BAW: jax.Array, excluded_BAp: jax.Array | None = None) -> Branches:
    """Returns the children of nodes of `level`, closed where all items below are excluded (`excluded_before`)."""
    if level == 0:
        nodes_BAW = jnp.zeros((1, 1, 1), jnp.int32)  # all are at the root
    begin_BAW, end_BAW = trie.children[level][nodes_BAW], trie.children[level][nodes_BAW + 1]
    reach_BAWC = begin_BAW[..., None] + jnp.arange(trie.branching[level])
    nodes_BAWC = jnp.minimum(reach_BAWC, trie.tokens[level].shape[0] - 1)
    open_BAWC = reach_BAWC < end_BAW[..., None]
    if excluded_BAp is not None:
        first_BAWC, last_BAWC = trie.leaves[level][nodes_BAWC], trie.leaves[level][nodes_BAWC + 1]
        B, A, _ = excluded_BAp.shape

        def before(places_BAWC: jax.Array) -> jax.Array:
            shape = (B, A, *places_BAWC.shape[2:])
            flat_BAm = jnp.broadcast_to(places_BAWC, shape).reshape(B, A, -1)
            return jnp.take_along_axis(excluded_BAp, flat_BAm, axis=-1).reshape(shape)

        open_BAWC = open_BAWC & (last_BAWC - first_BAWC > before(last_BAWC) - before(first_BAWC))
    return Branches(trie.tokens[level][nodes_BAWC], nodes_BAWC, open_BAWC)
