"""What training asks, drawn many at a time, and how large that is, known before it is written."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpus import TRAIN, build_corpus
from data_pipelines.permutation import permuted
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks import TASKS
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig, TrainingQueries
from data_pipelines.tasks.registry import default_shares
from tests.data_pipelines.small import drawn, small_corpus, small_vocabulary, small_writer
from tests.data_pipelines.test_poison_pills import PILLS, writer_of
from tests.data_pipelines.test_tasks import configs, row_shapes

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS, images=True)
HAS_CODES = VOCABULARY.image_codes.has_codes
EVERY_TASK = QueryConfig(default_shares() | {"image": 2}, whole_rate=0.5, unconditional_rate=0.3)
RATED = build_corpus(
    [Item(f"i{number}", f"Item {number}", (), ("Drama",)) for number in range(40)],
    [User(f"u{user}", tuple(Interaction(f"i{(user + n) % 40}", rating=3.0) for n in range(14))) for user in range(25)],
)
LIKELY = 1e-3
"""A test of a right distribution fails with this probability, once for all: seeds are fixed."""


@settings(max_examples=60, deadline=None)
@given(
    config=configs, row_shape=row_shapes, seed=st.integers(0, 3), block=st.integers(0, 5),
    image_tokens=st.sampled_from([1, 3]),
)  # fmt: skip
def test_sizes_planned_are_sizes_written(config, row_shape, seed, block, image_tokens):
    writer = small_writer(CORPUS, VOCABULARY, config, row_shape, image_tokens)
    queries, _ = TrainingQueries(CORPUS, EVERY_TASK, seed, HAS_CODES).draw(block, 30)
    layouts = writer.lay_out(queries)
    for number in range(30):
        planned, alone = writer.write_planned(layouts, number), writer.write(queries[number])
        assert planned.size == tuple(layouts.sizes[number])
        for field in ("tokens", "images", "answer_positions", "answer_targets", "answer_weights"):
            np.testing.assert_array_equal(getattr(planned, field), getattr(alone, field))


@pytest.mark.parametrize("name", ["1,600 characters without blanks", "long reviews", "a long history", "two items"])
@pytest.mark.parametrize("tokens", [48, 90, 160, 700])
def test_sizes_planned_are_sizes_written_where_texts_are_cut(name, tokens):
    corpus = build_corpus(*PILLS[name])
    writer = writer_of(corpus, row_shape=RowShape(tokens, 6, 48))
    queries = drawn(corpus, count=40)
    layouts = writer.lay_out(queries)
    examples = [writer.write_planned(layouts, number) for number in range(40)]
    np.testing.assert_array_equal([example.size for example in examples], layouts.sizes)
    assert (layouts.sizes[:, 0] <= tokens).all()
    # Texts are cut to one length, so that a token or two may be left over.
    assert (layouts.sizes[layouts.shortened, 0] > tokens - 3).all()


def test_the_mix_is_that_of_the_configuration():
    mix = {"recommendation": 4.0, "search": 2.0, "rating": 1.0, "selection": 0.5}
    queries = drawn(RATED, QueryConfig(mix, whole_rate=0.2), count=8000)
    counts = np.bincount(queries.tasks, minlength=len(TASKS))
    shares = np.array([mix.get(name, 0.0) for name in TASKS])
    assert counts[shares == 0].sum() == 0
    asked = shares > 0
    assert scipy.stats.chisquare(counts[asked], 8000 * shares[asked] / shares.sum()).pvalue > LIKELY
    assert scipy.stats.binomtest(int(queries.whole.sum()), 8000, 0.2).pvalue > LIKELY
    pairs = np.bincount(queries.tasks * 25 + queries.users, minlength=25 * len(TASKS)).reshape(-1, 25)[asked]
    assert scipy.stats.chi2_contingency(pairs).pvalue > LIKELY  # whoever is asked


def test_positions_are_uniform_over_what_is_to_train_on():
    queries = drawn(RATED, count=8000)
    num_train = int((RATED.splits == TRAIN).sum() / RATED.num_users)
    counts = np.bincount(queries.positions)
    assert counts[0] == 0
    assert len(counts) == num_train
    assert scipy.stats.chisquare(counts[1:]).pvalue > LIKELY
    latest = drawn(RATED, QueryConfig(window="latest", window_items=8), count=500).positions
    assert set(latest.tolist()) == set(range(8, num_train))


def test_wrong_candidates_are_uniform_over_what_was_not_met():
    queries = drawn(RATED, QueryConfig({**dict.fromkeys(TASKS, 0.0), "selection": 1.0}), count=8000)
    unmet = RATED.num_items - 12  # of 14 interactions, two are held out
    right = (queries.candidates[:, :, None] == queries.right[:, None]).any(axis=2)
    both = right.sum(axis=1) == 2
    assert ((queries.right >= 0).sum(axis=1) == right.sum(axis=1)).all()
    followed = queries.positions < 11  # by another interaction to train on
    assert not both[~followed].any()
    assert scipy.stats.binomtest(int(both.sum()), int(followed.sum()), 0.5).pvalue > LIKELY
    steps = (queries.candidates - queries.users[:, None]) % 40  # user u met the items u, u + 1, …
    assert (steps[~right] >= 12).all()
    assert (np.diff(np.sort(queries.candidates, axis=1), axis=1) > 0).all()
    assert scipy.stats.chisquare(np.bincount(steps[~right] - 12, minlength=unmet)).pvalue > LIKELY
    assert scipy.stats.chisquare(right[~both].sum(axis=0)).pvalue > LIKELY  # in any place


def test_who_met_nearly_everything_is_offered_the_rest():
    corpus = build_corpus(*PILLS["a user who met everything"])
    queries, replaced = TrainingQueries(corpus, QueryConfig({"selection": 1.0}), seed=0).draw(0, 700)
    whole = corpus.user_ids.index("all")
    assert set(np.unique(queries.tasks[queries.users == whole])) == {0}
    assert replaced == {"selection where nothing is left unmet": int((queries.users == whole).sum())}


@given(size=st.integers(1, 3000), key=st.integers(0, 2**62))
def test_a_permutation_is_a_bijection(size, key):
    found = permuted(np.arange(size), size, np.full(size, key))
    assert sorted(found.tolist()) == list(range(size))
    some = np.arange(size)[:: 1 + size // 7]
    np.testing.assert_array_equal(permuted(some, size, np.full(len(some), key)), found[some])


@pytest.mark.parametrize("size", [2, 3, 7, 12])
def test_permutations_of_many_keys_have_every_number_everywhere(size):
    keys = np.arange(20_000)
    for place in range(size):
        counts = np.bincount(permuted(np.full(len(keys), place), size, keys), minlength=size)
        assert scipy.stats.chisquare(counts).pvalue > LIKELY / size


def test_neighbours_are_no_neighbours_any_more():
    size = 100_000
    found = permuted(np.arange(size), size, np.full(size, 5))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.02


def test_a_seed_or_a_block_changes_what_is_asked():
    def first(seed, block):
        return list(TrainingQueries(CORPUS, EVERY_TASK, seed, HAS_CODES).draw(block, 20)[0])

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(1, 0)
    assert first(0, 0) != first(0, 1)
