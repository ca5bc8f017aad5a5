"""Images as answers: what prompts say, what falls back, what guidance is given, and that long answers fit rows."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.image_codes import ImageCodes, save_image_codes
from data_pipelines.packing import fill_row, pack
from data_pipelines.tasks import Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.prompt import prompt_texts
from data_pipelines.tasks.queries import QueryConfig, TrainingQueries, held_out_queries
from data_pipelines.tasks.registry import task_number
from data_pipelines.vocabulary import IMAGE_CODES, Vocabulary, VocabularyConfig, build_vocabulary, load_vocabulary
from tests.data_pipelines.small import drawn, small_corpus, small_images, small_vocabulary, small_writer

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS, images=True)
IMAGES = small_images(CORPUS)
ROOMY = RowShape(tokens=2048, images=64, answers=512)
USER = int(np.argmax(np.diff(CORPUS.offsets)))
MIX = QueryConfig({"recommendation": 1, "search": 1, "rating": 0, "selection": 0, "image": 2})
ALONE = QueryConfig({"recommendation": 0, "search": 0, "rating": 0, "selection": 0, "image": 1})
ASKED = "What is the generated image ID to the query based on the history?"


def queries(config: QueryConfig = MIX, seed: int = 0) -> list[Query]:
    return list(drawn(CORPUS, config, seed=seed, count=2000, has_codes=IMAGES.has_codes))


def can_be_asked(item: int) -> bool:
    return bool(IMAGES.has_codes[item]) and bool(CORPUS.categories[item])


def question(position: int = 5, **fields) -> Query:
    """About the first item that can be asked about, from `position` on."""
    items = CORPUS.history(USER, 25)
    position = next(place for place in range(position, len(items)) if can_be_asked(items[place]))
    return Query("image", USER, position, (int(items[position]),), **fields)


def test_an_image_is_asked_for_and_reported_as_the_paper_writes_it():
    query = question()
    example = small_writer(CORPUS, VOCABULARY, TaskConfig(full_items=1), ROOMY).write(query)
    before = int(CORPUS.history(USER, query.position)[-1])
    item = query.right[0]
    attributes = " ".join(f"{name} {text or 'Unknown'}" for name, text in CORPUS.attributes[before])
    marker = "<image> " if before % 3 else ""
    codes = " ".join(f"img_{code}" for code in IMAGES.codes[item])
    assert VOCABULARY.decode(example.tokens) == (
        f"<s> {marker}{attributes} <answer> item_{CORPUS.item_ids[before]} <|endofchunk|> "
        f"Query: {', '.join(CORPUS.categories[item])} {ASKED} <answer> {codes} </s>"
    )


def test_the_unconditional_question_is_the_same_for_everybody():
    writer = small_writer(CORPUS, VOCABULARY, TaskConfig(full_items=3, id_items=9), ROOMY)
    asked = [writer.write(question(position, unconditional=True), ask=True) for position in (5, 9)]
    assert VOCABULARY.decode(asked[0].tokens) == f"<s> {ASKED} <answer>"
    np.testing.assert_array_equal(asked[0].tokens, asked[1].tokens)
    assert not len(asked[0].images)
    trained = writer.write(question(unconditional=True))
    np.testing.assert_array_equal(trained.tokens[: len(asked[0].tokens)], asked[0].tokens)
    assert len(trained.answer_targets) == IMAGES.codes_per_image + 1


def test_all_codes_and_the_end_are_targets_each_with_the_weight_of_the_task():
    config = TaskConfig(full_items=2, history_targets="none")
    config = dataclasses.replace(config, loss_weights={**config.loss_weights, "image": 0.25})
    query = question()
    example = small_writer(CORPUS, VOCABULARY, config, ROOMY).write(query)
    codes = VOCABULARY.image_tokens(query.right[0])
    np.testing.assert_array_equal(example.answer_targets, [*codes, VOCABULARY.eos])
    np.testing.assert_array_equal(example.answer_weights, np.full(len(codes) + 1, 0.25, np.float32))
    start = int(np.flatnonzero(example.tokens == VOCABULARY.answer)[-1])
    np.testing.assert_array_equal(example.answer_positions, start + np.arange(len(codes) + 1))


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 400), seed=st.integers(0, 3), tokens=st.integers(64, 300), answers=st.integers(7, 40))
def test_what_is_asked_is_what_was_trained_on_within_any_budget(number, seed, tokens, answers):
    query = queries(ALONE, seed)[number]
    config = TaskConfig(full_items=2, id_items=8, history_targets="next_item")
    writer = small_writer(CORPUS, VOCABULARY, config, RowShape(tokens, 4, answers))
    trained, asked = writer.write(query), writer.write(query, ask=True)
    np.testing.assert_array_equal(asked.tokens, trained.tokens[: len(asked.tokens)])
    assert asked.tokens[-1] == VOCABULARY.answer
    assert all(size <= room for size, room in zip(trained.size, (tokens, 4, answers), strict=True))


def test_only_items_with_codes_and_categories_are_asked_about():
    """Others fall back to recommendation, as a search without categories does."""
    asked = queries(ALONE)
    assert [query.task for query in asked] == ["image" if can_be_asked(q.right[0]) else "recommendation" for q in asked]
    assert len({query.task for query in asked}) == 2
    for split in ("validation", "test"):
        held_out = held_out_queries(CORPUS, split, "image", IMAGES.has_codes)
        assert held_out
        assert all(can_be_asked(query.right[0]) and not query.unconditional for query in held_out)
        everybody = held_out_queries(CORPUS, split, "recommendation")
        assert [q.user for q in held_out] == [q.user for q in everybody if can_be_asked(q.right[0])]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_is_asked_without_history_and_query_the_same_for_whoever_asks(share):
    config = dataclasses.replace(MIX, unconditional_rate=share)
    forwards = queries(config)
    assert forwards == queries(config)
    bare = np.array([query.unconditional for query in forwards if query.task == "image"])
    assert not any(query.unconditional for query in forwards if query.task != "image")
    assert abs(bare.mean() - share) < 4 * 0.5 / len(bare) ** 0.5  # four standard deviations at most
    everything_asked = [dataclasses.replace(query, unconditional=False) for query in forwards]
    assert everything_asked == [
        dataclasses.replace(query, unconditional=False) for query in queries()
    ]  # of whom, and about what, does not hang on the share


def test_without_images_in_the_mix_nothing_is_asked_otherwise_than_before():
    config = QueryConfig()
    with_codes, without = queries(config), list(drawn(CORPUS, config, count=2000))
    assert with_codes == without


def test_images_without_codes_are_refused_and_say_what_makes_them():
    with pytest.raises(ValueError, match=r"queries\.mix\.image .* vocabulary\.image_codes .* `unimp vqgan codes`"):
        TrainingQueries(CORPUS, MIX, 0)
    assert not held_out_queries(CORPUS, "test", "image")
    with pytest.raises(ValueError, match="the vocabulary has no image codes"):
        small_writer(CORPUS, small_vocabulary(CORPUS), TaskConfig(), ROOMY).write(question())
    without = next(item for item in range(CORPUS.num_items) if not IMAGES.has_codes[item])
    with pytest.raises(ValueError, match=f"item number {without} has no codes"):
        VOCABULARY.image_tokens(without)
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        QueryConfig(unconditional_rate=1.5)


def test_where_nothing_can_be_asked_for_the_weight_counts_for_nothing():
    nothing = np.zeros(CORPUS.num_items, bool)
    asked = drawn(CORPUS, MIX, count=300, has_codes=nothing)
    assert {query.task for query in asked} == {"recommendation", "search"}
    with pytest.raises(ValueError, match=r"does not have what the tasks of the mix need: .* or images"):
        TrainingQueries(CORPUS, ALONE, 0, nothing)


def test_the_vocabulary_has_a_token_for_each_code_behind_all_others():
    names = list(VOCABULARY.new_tokens)
    assert [names[token - VOCABULARY.base_size] for token in VOCABULARY.codes] == [f"img_{code}" for code in range(11)]
    assert all(name.startswith("<reserved_") for name in names[names.index("img_10") + 1 :])
    plain = small_vocabulary(CORPUS)
    assert len(plain.codes) == 0
    assert names[: names.index("img_0")] == [name for name in plain.new_tokens if not name.startswith("<reserved_")]


def test_saving_and_loading_keep_the_images(tmp_path):
    VOCABULARY.save(tmp_path / "vocabulary")
    assert (tmp_path / "vocabulary" / IMAGE_CODES).is_file()
    loaded = load_vocabulary(tmp_path / "vocabulary", CORPUS)
    assert loaded.new_tokens == VOCABULARY.new_tokens
    assert loaded.image_codes.facts == IMAGES.facts
    np.testing.assert_array_equal(loaded.codes, VOCABULARY.codes)
    np.testing.assert_array_equal(loaded.image_codes.codes, IMAGES.codes)
    (tmp_path / "vocabulary" / IMAGE_CODES).unlink()
    with pytest.raises(DataError, match="does not exist"):
        load_vocabulary(tmp_path / "vocabulary", CORPUS)


def of_64_codes() -> Vocabulary:
    codes = np.random.default_rng(0).integers(256, size=(CORPUS.num_items, 64)).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        save_image_codes(Path(folder) / "codes", ImageCodes(tuple(CORPUS.item_ids), codes, (8, 8), 256))
        config = VocabularyConfig(trained_size=400, image_codes=Path(folder) / "codes")
        return build_vocabulary(CORPUS, config, prompt_texts(images=True))


def test_answers_of_64_codes_are_packed_into_rows_of_512_tokens():
    vocabulary, row_shape = of_64_codes(), RowShape(tokens=512, images=16, answers=320)
    config = TaskConfig(full_items=2, id_items=100, history_targets="next_item")
    writer = small_writer(CORPUS, vocabulary, config, row_shape)
    examples = [writer.write(query) for query in queries()[:200]]
    rows = pack(np.array([example.size for example in examples]), row_shape)
    assert sorted(number for row in rows for number in row) == list(range(200))
    whole = [fill_row([examples[number] for number in row], row_shape) for row in rows]
    assert np.mean([(row["segment_ids"] > 0).mean() for row in whole]) > 0.8
    drawn = np.isin([row["answer_targets"] for row in whole], vocabulary.codes)
    tasks = np.array([row["answer_tasks"] for row in whole])
    assert (tasks[drawn] == task_number("image")).all()
    assert drawn.sum() == 64 * sum(example.task == task_number("image") for example in examples)
    with pytest.raises(ValueError, match=r"the image question .* raise row_shape"):
        small_writer(CORPUS, vocabulary, config, dataclasses.replace(row_shape, answers=64)).write(question())
