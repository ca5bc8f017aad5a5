"""The stream of batches: the same whoever reads it, however it is shared, wherever it is taken up again."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.images import ImageConfig, ImageStore, decode
from data_pipelines.loader import LoaderConfig, Position, ProcessShard, question_batches, training_batches
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.prompt import PromptWriter
from data_pipelines.tasks.queries import QueryConfig, TrainingQueries, held_out_queries
from tests.data_pipelines.small import drawn, image, small_corpus, small_vocabulary, small_writer

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS)
ROW_SHAPE = RowShape(tokens=256, images=12, answers=64)
WRITER = small_writer(CORPUS, VOCABULARY, TaskConfig(full_items=2, id_items=10), ROW_SHAPE)
CONFIG = LoaderConfig(batch_size=4, block_examples=40)
NAMES = ("tokens", "segment_ids", "images", "image_index", "answer_targets", "answer_weights", "answer_tasks")


def images() -> ImageStore:
    return ImageStore(image, 8, ImageConfig())


def batches(
    count: int, config: LoaderConfig = CONFIG, start: Position = Position(), shard: ProcessShard = ProcessShard()
):
    stream = training_batches(
        TrainingQueries(CORPUS, QueryConfig(), seed=0), WRITER, images(), config, seed=0, start=start, shard=shard
    )
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_it_goes_on_exactly_from_any_position():
    whole = batches(30)
    assert len({batch.next_position.block for batch in whole}) > 1
    for step in (0, 5, 17):
        (again,) = batches(1, start=whole[step].next_position)
        assert_equal(again.arrays, whole[step + 1].arrays)


@pytest.mark.parametrize("shares", [[(0,), (1,)], [(0,), (1,), (2,), (3,)], [(0, 3), (1, 2)], [(0, 1, 3), (1, 2)]])
def test_processes_share_what_one_would_read(shares):
    """Whichever shards they have: a host's devices need not work on neighbouring rows."""
    whole, count = batches(12), max(map(max, shares)) + 1
    read = [batches(12, shard=ProcessShard(shards, count)) for shards in shares]
    for step, batch in enumerate(whole):
        parts = [process[step] for process in read]
        for shards, part in zip(shares, parts, strict=True):
            rows = [row for row in range(4) if row * count // 4 in shards]
            assert_equal(part.arrays, {name: array[rows] for name, array in batch.arrays.items()})
        assert {p.next_position for p in parts} == {batch.next_position}


def test_neither_threads_nor_batch_size_change_the_stream():
    rows = np.concatenate([batch.arrays["tokens"] for batch in batches(12)])
    other = batches(6, dataclasses.replace(CONFIG, batch_size=8, threads=7, prefetch=1))
    np.testing.assert_array_equal(rows, np.concatenate([batch.arrays["tokens"] for batch in other]))


@settings(max_examples=12, deadline=None)
@given(
    shares=st.sampled_from([1, 2, 4]).flatmap(lambda count: st.permutations(range(count))),
    rows_a_shard=st.integers(1, 3),
    threads=st.integers(1, 5),
    start=st.sampled_from([Position(), Position(0, 3), Position(2, 1)]),
)
def test_any_processes_with_any_threads_and_rows_read_the_same(shares, rows_a_shard, threads, start):
    size = len(shares) * rows_a_shard
    config = dataclasses.replace(CONFIG, batch_size=size, threads=threads)
    plain = dataclasses.replace(CONFIG, batch_size=1, threads=1)
    whole = {name: np.concatenate([batch.arrays[name] for batch in batches(3 * size, plain, start)]) for name in NAMES}
    read = [batches(3, config, start, ProcessShard((share,), len(shares))) for share in sorted(shares)]
    for name in NAMES:
        rows = [process[step].arrays[name] for step in range(3) for process in read]
        np.testing.assert_array_equal(np.concatenate(rows), whole[name], err_msg=name)


def test_a_process_writes_the_examples_of_its_own_rows_alone(monkeypatch):
    written = []
    write = PromptWriter.write_planned

    def counted(self, layouts, number):
        written.append(number)
        return write(self, layouts, number)

    monkeypatch.setattr(PromptWriter, "write_planned", counted)
    (batch, *_) = batches(1, dataclasses.replace(CONFIG, prefetch=0), shard=ProcessShard((1,), 4))
    assert 0 < len(written) == batch.arrays["segment_ids"].max(axis=1).sum() < batch.num_examples


def test_what_a_batch_says_of_all_rows_is_what_they_hold():
    for batch in batches(8):
        arrays = batch.arrays
        assert batch.num_examples == arrays["segment_ids"].max(axis=1).sum()
        assert batch.num_images == (arrays["image_segment_ids"] > 0).sum()
        assert batch.fill == (arrays["segment_ids"] > 0).mean()


def test_plans_of_another_version_are_refused():
    with pytest.raises(ValueError, match=r"loader\.planner 1: .* the version of this project that started the run"):
        batches(1, dataclasses.replace(CONFIG, planner=1))


def test_every_example_of_a_block_is_read_once():
    expected = sorted(tuple(WRITER.write(query).tokens.tolist()) for query in drawn(CORPUS, count=40))
    seen = []
    for batch in batches(30, dataclasses.replace(CONFIG, batch_size=1)):
        arrays = batch.arrays
        for segment in range(1, arrays["segment_ids"].max() + 1):
            seen.append(tuple(arrays["tokens"][arrays["segment_ids"] == segment].tolist()))
        if batch.next_position == Position(1, 0):
            break
    assert sorted(seen) == expected


def test_rows_that_processes_cannot_share_are_refused():
    with pytest.raises(ValueError, match="a batch of 4 rows cannot be split into 3 equal shards"):
        batches(1, shard=ProcessShard((0,), 3))


def test_the_images_lie_where_their_items_are_shown():
    (batch,) = batches(1)
    arrays = batch.arrays
    store = images()
    for row in range(4):
        shown = arrays["image_segment_ids"][row] > 0
        assert (arrays["images"][row][~shown] == 0).all()
        colours = {store[item].tobytes() for item in range(CORPUS.num_items) if item % 3}
        assert all(image.tobytes() in colours for image in arrays["images"][row][shown])


@pytest.mark.parametrize("tight", [False, True])
def test_every_question_is_asked_once(tight):
    queries = held_out_queries(CORPUS, "test", "recommendation")
    prompts = [WRITER.write(query, ask=True) for query in queries]
    asked = []
    for batch in question_batches(prompts, dataclasses.replace(ROW_SHAPE, answers=3), images(), CONFIG, tight=tight):
        used = batch.prompts >= 0
        np.testing.assert_array_equal(used, batch.arrays["answer_weights"] > 0)
        for prompt, target in zip(batch.prompts[used], batch.arrays["answer_targets"][used], strict=True):
            assert target == VOCABULARY.items[queries[prompt].right[0], 0]
        asked += batch.prompts[used].tolist()
    assert sorted(asked) == list(range(len(prompts)))


def test_tight_rows_are_no_longer_than_they_must_be_and_as_many_as_fit_a_batch():
    queries = held_out_queries(CORPUS, "test", "recommendation")
    prompts = [WRITER.write(query, ask=True) for query in queries]
    row_shape = dataclasses.replace(ROW_SHAPE, tokens=10 * max(len(prompt.tokens) for prompt in prompts))
    batches = list(question_batches(prompts, row_shape, images(), CONFIG, tight=True))
    rows, length = batches[0].arrays["tokens"].shape
    assert all(batch.arrays["tokens"].shape == (rows, length) for batch in batches)
    assert rows % CONFIG.batch_size == 0
    assert rows * length <= CONFIG.batch_size * row_shape.tokens
    (alone,) = question_batches(prompts[:1], row_shape, images(), CONFIG, tight=True)
    assert alone.arrays["tokens"].shape == (CONFIG.batch_size, -(-len(prompts[0].tokens) // 16) * 16)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_images_become_squares(fit):
    assert decode(image(1, 30), 16, fit).shape == (16, 16, 3)


@pytest.mark.parametrize("broken", [b"", b"not an image", image(1)[:40]])
def test_broken_images_are_named(broken):
    with pytest.raises(DataError, match="not a readable image"):
        decode(broken, 16, "crop")


def test_the_cache_is_bounded_and_changes_nothing():
    store = ImageStore(image, 512, ImageConfig(cache_megabytes=1))
    first = [store[item].copy() for item in range(4)]
    assert store._decoded.cache_info().currsize == 1
    for item in range(4):
        np.testing.assert_array_equal(store[item], first[item])
