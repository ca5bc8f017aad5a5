"""Cold items: training sees neither them nor that they were met, and evaluation asks about them alone."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.cold import choose_cold, without_cold
from data_pipelines.corpus import SPLITS, TRAIN
from tests.data_pipelines.small import small_corpus


def named(corpus):
    """(user, item, time, split, text) of each interaction, in ids."""
    users = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))
    return [
        (corpus.user_ids[user], corpus.item_ids[corpus.items[event]], int(corpus.times[event]),
         int(corpus.splits[event]), corpus.texts.get(event, ""))
        for event, user in enumerate(users.tolist())
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 2**32 - 1), st.sampled_from([None, "validation", "test"]))
def test_only_what_is_asked_of_cold_items_is_left(share, seed, asked):
    corpus = small_corpus()
    is_cold = choose_cold(corpus.num_items, share, seed)
    assert 1 <= is_cold.sum() < corpus.num_items
    cold = {corpus.item_ids[item] for item in np.flatnonzero(is_cold)}
    found, kept = without_cold(corpus, is_cold, asked)
    assert named(found) == [
        row for row in named(corpus) if row[1] not in cold or (asked is not None and row[3] == SPLITS[asked])
    ]
    warm = [item_id for item_id in corpus.item_ids if item_id not in cold]
    assert found.item_ids[: len(warm)] == warm
    assert set(found.item_ids[len(warm) :]) == (cold if asked else set())
    assert found.item_ids == [corpus.item_ids[item] for item in kept]
    assert found.titles == [corpus.titles[item] for item in kept]
    assert (np.diff(found.offsets) > 0).all()
    assert (found.items[found.splits == TRAIN] < len(warm)).all()


def test_cold_items_are_the_share_of_a_seed():
    one, again, other = (choose_cold(1000, 0.2, seed) for seed in (0, 0, 1))
    assert one.sum() == 200
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_training_is_the_same_whatever_happened_with_cold_items():
    corpus = small_corpus()
    is_cold = choose_cold(corpus.num_items, 0.3, 0)
    items = corpus.items.copy()
    events = is_cold[items]
    items[events] = np.random.default_rng(0).choice(np.flatnonzero(is_cold), events.sum())
    changed, _ = without_cold(dataclasses.replace(corpus, items=items), is_cold)
    assert named(changed) == named(without_cold(corpus, is_cold)[0])
