"""Items named by several tokens: what the vocabulary holds, and what prompts say and ask of them."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipelines.errors import DataError
from data_pipelines.tasks import TASKS, Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, RowShape
from data_pipelines.tasks.queries import held_out_queries
from data_pipelines.vocabulary import CODES, VocabularyConfig, build_vocabulary, load_vocabulary
from data_pipelines.whole_tokenizer import whole_tokenizer
from tests.data_pipelines.small import (
    drawn,
    semantic_vocabulary,
    small_codes,
    small_corpus,
    small_images,
    small_vocabulary,
    small_writer,
)

CORPUS = small_corpus()
VOCABULARY = semantic_vocabulary(CORPUS)
DEPTH = 3
HAS_CODES = VOCABULARY.image_codes.has_codes
NAMING = frozenset(VOCABULARY.items.reshape(-1).tolist())
ROOMY = RowShape(tokens=2048, images=64, answers=512)
USER = int(np.argmax(np.diff(CORPUS.offsets)))


def test_an_item_is_named_by_the_tokens_of_its_codes_and_no_two_alike():
    assert VOCABULARY.depth == DEPTH
    assert VOCABULARY.items.shape == (CORPUS.num_items, DEPTH)
    assert len(np.unique(VOCABULARY.items, axis=0)) == CORPUS.num_items
    codes = small_codes(CORPUS).codes
    for item in range(CORPUS.num_items):
        assert VOCABULARY.decode(VOCABULARY.items[item]) == "<a_{}> <b_{}> <c_{}>".format(*codes[item])


def test_codes_of_another_level_or_other_things_have_other_tokens():
    levels = [set(level.tolist()) for level in VOCABULARY.items.T]
    others = {
        VOCABULARY.image, VOCABULARY.answer, VOCABULARY.end_of_chunk, VOCABULARY.bos, VOCABULARY.eos,
        *VOCABULARY.selections.tolist(), *VOCABULARY.ratings.tolist(),
    }  # fmt: skip
    for one, other in itertools.combinations([*levels, others], 2):
        assert not one & other
    assert min(NAMING) >= VOCABULARY.base_size
    assert max(NAMING) < VOCABULARY.size
    assert VOCABULARY.size < small_vocabulary(CORPUS, images=True).size  # which is what codes are for


def test_saving_and_loading_change_nothing(tmp_path):
    VOCABULARY.save(tmp_path)
    assert (tmp_path / CODES).is_file()
    loaded = load_vocabulary(tmp_path, CORPUS)
    assert loaded.new_tokens == VOCABULARY.new_tokens
    assert loaded.depth == DEPTH
    np.testing.assert_array_equal(loaded.items, VOCABULARY.items)
    np.testing.assert_array_equal(loaded.ratings, VOCABULARY.ratings)
    assert loaded.item_codes.sizes == VOCABULARY.item_codes.sizes
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(load_vocabulary(tmp_path / "again", CORPUS).items, VOCABULARY.items)


def test_a_saved_vocabulary_whose_codes_are_gone_is_reported_with_their_file(tmp_path):
    VOCABULARY.save(tmp_path)
    (tmp_path / CODES).unlink()
    with pytest.raises(DataError, match=f"{CODES} does not exist"):
        load_vocabulary(tmp_path, CORPUS)


def test_codes_left_by_another_vocabulary_are_not_taken(tmp_path):
    VOCABULARY.save(tmp_path)
    small_vocabulary(CORPUS).save(tmp_path)
    assert load_vocabulary(tmp_path, CORPUS).depth == 1


def test_a_catalogue_with_an_item_that_has_no_codes_is_refused(tmp_path):
    VOCABULARY.save(tmp_path)
    with pytest.raises(DataError, match="no codes for 1 of the items, such as 'i40'"):
        load_vocabulary(tmp_path, small_corpus(num_items=41))


def test_missing_codes_are_reported_before_anything_is_trained(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.parquet does not exist"):
        build_vocabulary(CORPUS, VocabularyConfig(trained_size=400, item_codes=tmp_path / "nowhere.parquet"))


def query_at(task: int, position: int) -> Query:
    items = CORPUS.items[CORPUS.offsets[USER] :]
    query = Query(task, USER, position, (int(items[position]),))
    if task != "selection":
        return query
    wrong = [item for item in range(CORPUS.num_items) if item not in CORPUS.history(USER, position + 2)][:1]
    right = (int(items[position]), int(items[position + 1]))
    return dataclasses.replace(query, right=right, candidates=(right[1], *wrong, right[0]))


def written(query: Query, config: TaskConfig, row_shape: RowShape = ROOMY) -> Example:
    return small_writer(CORPUS, VOCABULARY, config, row_shape).write(query)


def name_places(tokens: np.ndarray) -> np.ndarray:
    """Where the tokens of items' names stand, in order."""
    return np.flatnonzero(np.isin(tokens, list(NAMING)))


def asked_of(example: Example) -> dict[int, int]:
    assert len(set(example.answer_positions.tolist())) == len(example.answer_positions)
    return dict(zip(example.answer_positions.tolist(), example.answer_targets.tolist(), strict=True))


def rating_token(rating: float) -> int:
    return VOCABULARY.ratings[np.abs(np.subtract(VOCABULARY.rating_levels, rating)).argmin()]


def answer_of(query: Query) -> list[int]:
    """What must stand behind the last `<answer>`, but for an explanation."""
    event = int(CORPUS.offsets[USER]) + query.position
    if query.task == "rating":
        return [rating_token(CORPUS.ratings[event])]
    if query.task == "selection":
        return [VOCABULARY.selections[0], VOCABULARY.selections[2]]
    if query.task == "image":
        return VOCABULARY.codes[small_images(CORPUS).codes[query.right[0]]].tolist()
    return VOCABULARY.items[query.right[0]].tolist()


def can_be_asked(position: int) -> bool:
    """Whether all tasks can be asked about what the user met there."""
    event = CORPUS.offsets[USER] + position
    item = CORPUS.items[event]
    return bool(CORPUS.categories[item]) and not np.isnan(CORPUS.ratings[event]) and bool(HAS_CODES[item])


POSITION = next(filter(can_be_asked, range(7, 14)))
LATEST = next(filter(can_be_asked, range(int(np.diff(CORPUS.offsets)[USER]) - 1, 12, -1)))


@pytest.mark.parametrize("task", TASKS)
def test_every_item_of_a_prompt_is_named_by_its_tokens_in_order(task):
    query = query_at(task, POSITION)
    example = written(query, TaskConfig(full_items=2, id_items=4, history_targets="next_item", rated_history=False))
    items = CORPUS.history(USER, POSITION)[-6:].tolist()
    if task in ("recommendation", "search"):
        items.append(query.right[0])  # the answer
    places = name_places(example.tokens)
    assert example.tokens[places].tolist() == VOCABULARY.items[items].reshape(-1).tolist()
    assert (np.diff(places.reshape(-1, DEPTH), axis=1) == 1).all()  # nothing stands within a name
    shown = example.tokens[: places[6 * DEPTH - 1] + 2].tolist()
    for name in VOCABULARY.items[items[4:6]].tolist():
        whole = [VOCABULARY.answer, *name, VOCABULARY.end_of_chunk]
        assert whole in [shown[start : start + len(whole)] for start in range(len(shown))]


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_is_the_whole_name_and_the_end(task):
    query = query_at(task, POSITION)
    example = written(query, TaskConfig(full_items=2, id_items=4, history_targets="none"))
    start = int(np.flatnonzero(example.tokens == VOCABULARY.answer)[-1]) + 1
    answer = example.tokens[start:].tolist()
    assert answer[-1] == VOCABULARY.eos
    expected = answer_of(query)
    assert answer[: len(expected)] == expected
    if task != "rating":
        assert answer == [*expected, VOCABULARY.eos]
    assert asked_of(example) == {start - 1 + place: token for place, token in enumerate(answer)}


@pytest.mark.parametrize("task", ["rating", "selection"])
def test_items_that_are_asked_about_are_named_whole_where_that_is_wanted(task):
    query = query_at(task, POSITION)
    example = written(query, TaskConfig(full_items=0, questions_show_ids=True))
    places = name_places(example.tokens).reshape(-1, DEPTH)
    items = query.right if task == "rating" else query.candidates
    np.testing.assert_array_equal(example.tokens[places], VOCABULARY.items[list(items)])
    if task == "selection":
        np.testing.assert_array_equal(example.tokens[places[:, 0] - 1], VOCABULARY.selections)


def test_a_rating_stands_behind_the_whole_name():
    query = query_at("rating", POSITION)
    example = written(query, TaskConfig(full_items=2, id_items=4, history_targets="next_item"))
    ratings = CORPUS.ratings[CORPUS.offsets[USER] :][POSITION - 6 : POSITION]
    assert not np.isnan(ratings).all()
    places = name_places(example.tokens).reshape(-1, DEPTH)
    asked = asked_of(example)
    for last, rating in zip(places[:, -1].tolist(), ratings, strict=True):
        if not np.isnan(rating):
            assert asked[last] == example.tokens[last + 1] == rating_token(rating)


def predicted(example: Example, following: int) -> dict[int, int]:
    """Each token of the names in a history foretells the next one, the last the first of `following`."""
    places = name_places(example.tokens)
    last = int(np.flatnonzero(example.tokens == VOCABULARY.answer)[-1])
    places = places[places < last]
    targets = [*example.tokens[places].tolist(), int(VOCABULARY.items[following, 0])][1:]
    return dict(zip(places.tolist(), targets, strict=True))


def asked_in_answer(example: Example) -> dict[int, int]:
    last = int(np.flatnonzero(example.tokens == VOCABULARY.answer)[-1])
    return {place: int(example.tokens[place + 1]) for place in range(last, len(example.tokens) - 1)}


SHAPES = [(0, 6), (2, 4), (6, 0), (3, 100)]


@pytest.mark.parametrize(("full", "bare"), SHAPES)
@pytest.mark.parametrize("task", ["recommendation", "search", "selection"])
def test_names_foretell_their_own_next_token_and_then_the_next_item(task, full, bare):
    query = query_at(task, POSITION)
    example = written(query, TaskConfig(full_items=full, id_items=bare, history_targets="next_item"))
    assert asked_of(example) == predicted(example, query.right[0]) | asked_in_answer(example)


@pytest.mark.parametrize(("full", "bare"), SHAPES)
@pytest.mark.parametrize("task", ["recommendation", "search", "selection"])
def test_names_of_whole_items_are_reconstructed_token_by_token(task, full, bare):
    query = query_at(task, POSITION)
    example = written(query, TaskConfig(full_items=full, id_items=bare, history_targets="reconstruct"))
    chunks = np.flatnonzero(example.tokens == VOCABULARY.answer).tolist()[:-1]
    assert len(chunks) == full
    expected = asked_in_answer(example)
    for start in chunks:
        expected |= {start + place: int(example.tokens[start + place + 1]) for place in range(DEPTH)}
    following = predicted(example, query.right[0])
    bare_ids = {p: t for p, t in following.items() if not chunks or p < chunks[0]}
    assert len(bare_ids) == DEPTH * min(bare, POSITION - full)
    assert asked_of(example) == expected | bare_ids
    example = written(query, TaskConfig(full_items=full, id_items=bare, history_targets="both"))
    assert asked_of(example) == expected | following


@pytest.mark.parametrize(("full", "bare"), SHAPES)
def test_at_the_last_id_the_answer_is_one_more_name_that_the_one_before_foretells(full, bare):
    config = TaskConfig(
        full_items=full, id_items=bare, history_targets="next_item", recommendation_at="last_id", ask_every=2
    )
    query = query_at("recommendation", POSITION)
    example = written(query, config)
    places = name_places(example.tokens)
    items = [*CORPUS.history(USER, POSITION)[-(full + bare) :].tolist(), query.right[0]]
    assert example.tokens[places].tolist() == VOCABULARY.items[items].reshape(-1).tolist()
    assert example.tokens[places[-2 * DEPTH] :].tolist() == [*example.tokens[places[-2 * DEPTH :]], VOCABULARY.eos]
    assert example.answer_positions.tolist() == places.tolist()
    assert example.answer_targets.tolist() == [*example.tokens[places[1:]].tolist(), VOCABULARY.eos]


@pytest.mark.parametrize("targets", ["next_item", "none"])
@pytest.mark.parametrize("task", ["recommendation", "search"])
def test_a_question_along_the_bare_ids_is_answered_by_a_whole_name(task, targets):
    config = TaskConfig(full_items=0, id_items=100, ask_every=2, history_targets=targets, history_weight=0.25)
    query = query_at(task, LATEST)
    example = written(query, config)
    tokens, history = example.tokens, CORPUS.history(USER, LATEST + 1)
    assert tokens[name_places(tokens)].tolist() == VOCABULARY.items[history].reshape(-1).tolist()  # each once
    answers: dict[int, int] = {}
    for place in np.flatnonzero(tokens == VOCABULARY.answer).tolist():
        behind = place + DEPTH + 1
        assert tokens[behind] == (VOCABULARY.eos if behind == len(tokens) - 1 else VOCABULARY.end_of_chunk)
        answers |= {place + step: int(tokens[place + step + 1]) for step in range(DEPTH)}
    assert len(answers) >= 3 * DEPTH
    answers[len(tokens) - 2] = VOCABULARY.eos
    asked = asked_of(example)
    weights = dict(zip(example.answer_positions.tolist(), example.answer_weights.tolist(), strict=True))
    full = 2.0 if task == "recommendation" else 1.0
    assert {place: asked[place] for place in answers} == answers
    assert {weights[place] for place in answers} == {full}
    others = {place: token for place, token in asked.items() if place not in answers}
    if targets == "none":
        assert not others
        return
    assert others == {p: t for p, t in predicted(example, query.right[0]).items() if p not in answers}
    assert {weights[place] for place in others} == {full * 0.25}


def test_a_prompt_with_the_beginning_of_a_name_asks_for_its_next_token():
    writer = small_writer(CORPUS, VOCABULARY, TaskConfig(full_items=1), ROOMY)
    query = query_at("recommendation", POSITION)
    name = VOCABULARY.items[query.right[0]].tolist()
    whole = writer.write(query).tokens
    for said, target in enumerate([*name, VOCABULARY.eos]):
        prompt = writer.write(query, ask=True, begun=name[:said])
        assert prompt.answer_targets.tolist() == [target]
        assert prompt.answer_positions.tolist() == [len(prompt.tokens) - 1]
        np.testing.assert_array_equal(prompt.tokens, whole[: len(prompt.tokens)])


DRAWN = drawn(CORPUS, seed=1, count=501)
configs = st.builds(
    TaskConfig,
    full_items=st.integers(0, 6),
    id_items=st.integers(0, 12),
    history_targets=st.sampled_from(["reconstruct", "next_item", "both", "none"]),
    rated_history=st.booleans(),
    ask_every=st.integers(0, 4),
    recommendation_at=st.sampled_from(["question", "last_id"]),
    rating_at=st.sampled_from(["question", "last_id"]),
    questions_show_ids=st.booleans(),
    images=st.booleans(),
    text=st.booleans(),
)
row_shapes = st.builds(RowShape, tokens=st.integers(160, 400), images=st.integers(3, 8), answers=st.integers(6, 60))


@settings(max_examples=60, deadline=None)
@given(config=configs, row_shape=row_shapes, number=st.integers(0, 500))
def test_every_example_is_whole_within_its_budget_and_asked_as_it_was_trained(config, row_shape, number):
    query = DRAWN[number]
    writer = small_writer(CORPUS, VOCABULARY, config, row_shape)
    trained, asked = writer.write(query), writer.write(query, ask=True)
    assert all(size <= room for size, room in zip(trained.size, dataclasses.astuple(row_shape), strict=True))
    assert trained.tokens[0] == VOCABULARY.bos
    assert trained.tokens[-1] == VOCABULARY.eos
    assert (trained.tokens == VOCABULARY.image).sum() == len(trained.images)
    places = name_places(trained.tokens)
    assert len(places) % DEPTH == 0
    names = trained.tokens[places].reshape(-1, DEPTH)  # no name is cut, whatever is left out
    assert set(map(tuple, names.tolist())) <= set(map(tuple, VOCABULARY.items.tolist()))
    assert (np.diff(places.reshape(-1, DEPTH), axis=1) == 1).all()
    for place, target in asked_of(trained).items():
        if {target, int(trained.tokens[place + 1])} <= NAMING:
            assert target == trained.tokens[place + 1]  # what truly follows, wherever a name follows at once
    assert len(asked.tokens) < row_shape.tokens
    # Where there is no room for the whole history, how much is trained on hangs on the answer's length.
    writer = small_writer(CORPUS, VOCABULARY, config, ROOMY)
    trained, asked = writer.write(query), writer.write(query, ask=True)
    length = len(asked.tokens)
    np.testing.assert_array_equal(asked.tokens, trained.tokens[:length])
    if query.task == "recommendation" and config.recommendation_at == "last_id":
        assert asked.tokens[-1] in [*VOCABULARY.items[:, -1], VOCABULARY.bos]
    elif query.task == "rating" and config.rating_at == "last_id":
        assert asked.tokens[-1] == VOCABULARY.items[query.right[0], -1]
    else:
        assert asked.tokens[-1] == VOCABULARY.answer
    assert asked.answer_positions.tolist() == [length - 1]
    assert asked.answer_targets[0] == trained.tokens[length]


@settings(max_examples=40, deadline=None)
@given(
    config=configs.map(lambda config: dataclasses.replace(config, ask_every=0, history_targets="next_item")),
    row_shape=row_shapes,
    number=st.integers(0, 500),
)
def test_what_a_budget_leaves_of_a_history_still_foretells_what_comes_next(config, row_shape, number):
    config = dataclasses.replace(
        config, rated_history=False, questions_show_ids=False, recommendation_at="question", rating_at="question"
    )
    query = DRAWN[number]
    example = small_writer(CORPUS, VOCABULARY, config, row_shape).write(query)
    assert asked_of(example) == predicted(example, query.right[0]) | asked_in_answer(example)
    shown = example.tokens[list(predicted(example, 0))].reshape(-1, DEPTH)
    latest = CORPUS.history(query.user, query.position)[query.position - len(shown) :]
    np.testing.assert_array_equal(shown, VOCABULARY.items[latest])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """As a stranger loads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    whole_tokenizer(VOCABULARY).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("task", TASKS)
def test_a_tokenizer_for_strangers_gives_the_same_tokens(task, tokenizer):
    config = TaskConfig(full_items=2, id_items=8, questions_show_ids=True)
    writer = small_writer(CORPUS, VOCABULARY, config, RowShape(512, 16, 128))
    queries = held_out_queries(CORPUS, "test", task, HAS_CODES)[:20]
    assert queries
    for query in queries:
        tokens = writer.write(query, ask=True).tokens
        for text in (VOCABULARY.text(tokens), VOCABULARY.decode(tokens).replace("<s> ", "<s>")):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == tokens.tolist()
