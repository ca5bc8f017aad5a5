"""Search along a trie against scoring every item by brute force, without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unimp_jax.decoding.support import GEOMETRIES, ROOM, jitted, longer, model, prompts
from tests.unimp_jax.interop.support import all_logits
from tests.unimp_jax.models import drawn
from unimp_jax.decoding import PAST, build_trie, path_scores, prefill, search_items
from unimp_jax.sharding import MeshConfig, batch_sharding, make_mesh

ITEMS = 12


def find_items(net, batch, trie, excluded_BAI=None, **widths):
    return search_items(net, *prefill(net, batch), trie, excluded_BAI, **widths)


def random_ids(depth: int, seed: int) -> np.ndarray:
    """Distinct ids of `depth` tokens or fewer (the last one of a shorter id is in no other place)."""
    rng = np.random.default_rng(seed)
    width = max(2, round((2 * ITEMS) ** (1 / depth)) + 1)
    paths: dict[tuple[int, ...], None] = {}
    while len(paths) < ITEMS:
        path = rng.integers(3, 3 + (width if depth > 1 else 50), depth).tolist()
        if depth > 1 and rng.random() < 0.3:
            length = int(rng.integers(1, depth))
            path = [*path[: length - 1], 60, *[PAST] * (depth - length)]
        paths[tuple(path)] = None
    return np.array(list(paths), np.int32)[rng.permutation(ITEMS)]


def brute_force(net, batch, row: int, slot: int, ids: np.ndarray) -> np.ndarray:
    """log p of every id behind one prompt: each written out behind it, all logits of the whole row read."""
    scores = np.zeros(len(ids))
    plain = longer(batch, row, slot, [])
    ends = int(plain.answer_positions[0, 0])
    depth = ids.shape[1]
    tokens = np.repeat(np.asarray(plain.tokens), len(ids), 0)
    tokens[:, ends + 1 : ends + 1 + depth] = np.maximum(ids, 0)
    shown = longer(batch, row, slot, [0] * depth)  # segment, position and image of what is written
    many = dataclasses.replace(
        shown,
        tokens=tokens,
        **{
            name: np.repeat(np.asarray(getattr(shown, name)), len(ids), 0)
            for name in ("segment_ids", "positions", "image_index", "images", "image_segment_ids")
        },
    )
    log_p = np.asarray(jax.nn.log_softmax(all_logits(net, many)))
    for item, path in enumerate(ids):
        scores[item] = sum(log_p[item, ends + step, token] for step, token in enumerate(path) if token != PAST)
    return scores


@functools.cache
def searcher(name: str, k: int, beams: int):
    return jitted(
        model(name), lambda net, batch, trie, excluded: find_items(net, batch, trie, excluded, k=k, beams=beams)
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@settings(deadline=None, max_examples=4)
@given(st.data())
def test_as_wide_as_the_catalogue_it_is_exact(depth, data):
    name = data.draw(st.sampled_from(list(GEOMETRIES)))
    seed = data.draw(st.integers(0, 10_000))
    net, ids = model(name), random_ids(depth, seed)
    batch = prompts("packed", net.config)
    B, A = batch.answer_positions.shape
    rng = np.random.default_rng(seed)
    excluded = rng.random((B, A, ITEMS)) < 0.2
    trie = dataclasses.replace(build_trie(ids), branching=(ITEMS,) * depth)
    found = searcher(name, ITEMS, ITEMS)(batch, trie, excluded)
    for row, slot in np.argwhere(np.asarray(batch.answer_weights) > 0):
        scores = brute_force(net, batch, row, slot, ids)
        scores[excluded[row, slot]] = -np.inf
        left = int((scores > -np.inf).sum())
        order = np.argsort(-scores, kind="stable")[:left]
        items, values = found.items_BAk[row, slot], found.scores_BAk[row, slot]
        assert sorted(items[:left]) == sorted(order), "every item that is left, each once"
        assert (items[left:] == -1).all()
        np.testing.assert_allclose(values[:left], scores[order], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(scores[items[:left]], scores[order], atol=1e-4, rtol=1e-4)  # the order, up to ties


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.integers(0, ITEMS))
def test_narrow_beams_answer_with_valid_items_alone_and_none_twice(seed, closed):
    ids = random_ids(3, seed)
    net = model()
    batch = prompts("packed", net.config)
    B, A = batch.answer_positions.shape
    rng = np.random.default_rng(seed)
    excluded = rng.permuted(np.tile(np.arange(ITEMS) < closed, (B, A, 1)), axis=-1)
    trie = dataclasses.replace(build_trie(ids), branching=(ITEMS,) * 3)
    found = searcher("idefics", 3, 3)(batch, trie, excluded)
    for row, slot in np.argwhere(np.asarray(batch.answer_weights) > 0):
        items = found.items_BAk[row, slot]
        expected = min(3, ITEMS - closed)
        assert (items[:expected] >= 0).all()
        assert (items[expected:] == -1).all()
        assert len(set(items[:expected])) == expected
        assert not excluded[row, slot, items[:expected]].any()
        assert (np.diff(found.scores_BAk[row, slot][:expected]) <= 0).all()


def test_given_paths_score_what_brute_force_says():
    ids = random_ids(3, 1)
    net = model()
    batch = prompts("padded", net.config)
    B, A = batch.answer_positions.shape
    forced = np.broadcast_to(ids, (B, A, *ids.shape))
    scores = jitted(net, lambda net, batch, paths: path_scores(net, *prefill(net, batch), paths))(batch, forced)
    for row in range(B):
        np.testing.assert_allclose(scores[row, 0], brute_force(net, batch, row, 0, ids), atol=1e-4, rtol=1e-4)


def test_a_broken_model_finds_nothing():
    net = model()
    batch = prompts("single", net.config)
    broken = dataclasses.replace(batch, images=batch.images * jnp.nan)
    trie = build_trie(random_ids(2, 0))
    found = jitted(net, lambda net, batch, trie: find_items(net, batch, trie, k=3, beams=3))(broken, trie)
    assert (found.items_BAk == -1).all()


def test_on_a_mesh_it_finds_what_one_device_finds():
    net = model()
    batch = prompts("packed", net.config)
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), batch)  # 8 rows
    trie = build_trie(random_ids(3, 2))
    run = jitted(net, lambda net, batch, trie: find_items(net, batch, trie, k=3, beams=4))
    alone = run(batch, trie)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        spread = jax.device_put(batch, batch_sharding(mesh))
        together = jitted(net, lambda net, batch, trie: find_items(net, batch, trie, k=3, beams=4))(spread, trie)
    np.testing.assert_array_equal(alone.items_BAk, together.items_BAk)
    np.testing.assert_allclose(alone.scores_BAk, together.scores_BAk, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    """bfloat16 has 8 bits: log-probabilities around -5, through three steps, within 0.5; every answer is valid."""

    config = dataclasses.replace(GEOMETRIES["idefics"], compute_dtype="bfloat16")
    ids, net = random_ids(3, 3), drawn(config)
    exact = drawn(GEOMETRIES["idefics"])
    batch, trie = prompts("packed", config), build_trie(ids)
    found, expected = (
        jitted(one, lambda net, batch, trie: find_items(net, batch, trie, k=ITEMS, beams=ITEMS))(batch, trie)
        for one in (net, exact)
    )
    there = np.asarray(batch.answer_weights) > 0
    assert (np.sort(found.items_BAk[there]) == np.arange(ITEMS)).all()
    np.testing.assert_allclose(found.scores_BAk[there], expected.scores_BAk[there], atol=0.5)


assert ROOM >= 12 + 4, "the longest prompt and the longest id fit"
