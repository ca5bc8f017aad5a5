"""Tries in flat arrays hold exactly the ids they were built of, and know what lies below a node."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimp_jax.decoding import PAST, build_trie
from unimp_jax.decoding.trie import branches, excluded_before


@st.composite
def id_sets(draw) -> np.ndarray:
    """Distinct ids of up to 4 tokens, none the beginning of another: shorter ones end with a token of their own."""
    depth = draw(st.integers(1, 4))
    paths = draw(st.sets(st.lists(st.integers(0, 5), min_size=1, max_size=depth).map(tuple), min_size=1, max_size=20))
    ids = np.full((len(paths), depth), PAST)
    for row, path in enumerate(sorted(paths, key=hash)):
        ended = path if len(path) == depth else (*path, 6)
        ids[row, : len(ended)] = ended
    return ids


def said_along(trie, level: int = 0, node: int = 0) -> list[tuple[list[int], int]]:
    """(tokens, item) of everything below a node, by walking."""
    if level == trie.depth:
        return [([], int(trie.items[node]))]
    ways = branches(trie, level, jnp.full((1, 1, 1), node))
    found = []
    for token, child, there in zip(*(np.asarray(x)[0, 0, 0] for x in vars(ways).values()), strict=True):
        if there:
            found += [([int(token), *rest], item) for rest, item in said_along(trie, level + 1, int(child))]
    return found


def below(trie, level: int, node: int) -> list[int]:
    """The items below a node of a level above 0."""
    begins = np.asarray(trie.leaves[level - 1])
    return np.asarray(trie.items)[begins[node] : begins[node + 1]].tolist()


@settings(deadline=None, max_examples=60)
@given(id_sets())
def test_walking_finds_every_id_once_with_its_item(ids):
    found = said_along(build_trie(ids))
    assert sorted(item for _, item in found) == list(range(len(ids)))
    for tokens, item in found:
        assert tokens == ids[item].tolist()


@settings(deadline=None, max_examples=60)
@given(id_sets(), st.randoms(use_true_random=False))
def test_a_branch_is_open_as_long_as_an_item_below_it_is(ids, random):
    trie = build_trie(ids)
    closed = {item for item in range(len(ids)) if random.random() < 0.6}
    excluded = excluded_before(trie, jnp.array([item in closed for item in range(len(ids))])[None, None])
    for level in range(trie.depth):
        ways = branches(trie, level, jnp.arange(len(trie.children[level]) - 1)[None, None], excluded)
        begins, is_open = np.asarray(trie.children[level]), np.asarray(ways.open_BAWC[0, 0])
        for node, number in np.ndindex(is_open.shape):
            child = begins[node] + number
            left = child < begins[node + 1] and any(item not in closed for item in below(trie, level + 1, child))
            assert is_open[node, number] == left, (level, node, child)


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ([[1, 2], [3, 1], [1, 2]], "items 0 and 2 have the same id"),
        ([[1, PAST], [1, 2]], r"the id \[1\] of item 0 is a prefix of the id \[1, 2\] of item 1"),
        ([[1, -2]], "negative"),
        ([[PAST, 1]], "empty or has a negative token"),
        ([], "shape"),
    ],
)
def test_ambiguous_ids_are_refused(ids, fault):
    with pytest.raises(ValueError, match=fault):
        build_trie(np.array(ids))


def test_a_million_items_take_seconds():
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(0, [512, 512, 512, 32], (1_010_000, 4)), axis=0)
    ids = rng.permutation(ids)[:1_000_000]
    start = time.perf_counter()
    trie = build_trie(ids)
    assert time.perf_counter() - start < 10
    assert trie.items.shape == (1_000_000,)
    assert trie.branching[0] == 512
