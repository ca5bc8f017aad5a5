"""What prompts say, and that training and evaluation say the same."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpus import TRAIN
from data_pipelines.tasks import TASKS, Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig, TrainingQueries, held_out_queries
from data_pipelines.tasks.registry import default_shares
from tests.data_pipelines.answers import answer_mask
from tests.data_pipelines.small import drawn, small_corpus, small_vocabulary, small_writer

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS, images=True)
HAS_CODES = VOCABULARY.image_codes.has_codes
ROOMY = RowShape(tokens=2048, images=64, answers=512)
DRAWN = drawn(CORPUS, QueryConfig(default_shares() | {"image": 2}), seed=1, count=501, has_codes=HAS_CODES)
USER = int(np.argmax(np.diff(CORPUS.offsets)))


def text_of(query: Query, config: TaskConfig, row_shape: RowShape = ROOMY) -> str:
    example = small_writer(CORPUS, VOCABULARY, config, row_shape).write(query)
    return VOCABULARY.decode(example.tokens)


def query_at(task: int, position: int, **fields) -> Query:
    item = int(CORPUS.items[CORPUS.offsets[USER] + position])
    return Query(task, USER, position, (item,), **fields)


def test_a_recommendation_reads_as_the_paper_writes_it():
    query = query_at("recommendation", 4)
    text = text_of(query, TaskConfig(full_items=1, id_items=2))
    ids = [CORPUS.item_ids[item] for item in CORPUS.history(USER, 5)]
    assert text.startswith(f"<s> item_{ids[1]} item_{ids[2]} ")
    item = int(CORPUS.history(USER, 5)[3])
    genres, title = CORPUS.attributes[item][0][1] or "Unknown", CORPUS.titles[item]
    marker = "<image> " if item % 3 else ""
    assert f"{marker}Genres {genres} Title {title} <answer> item_{ids[3]} <|endofchunk|>" in text
    assert text.endswith(f"What is the next item recommended to the user? <answer> item_{ids[4]} </s>")


@pytest.mark.parametrize("task", ["recommendation", "selection"])
@pytest.mark.parametrize("framed", [False, True])
def test_an_image_takes_as_many_tokens_as_stand_for_it(task, framed):
    """The rest of a prompt is the same, and moves; what has no room any more is left out."""
    image, frame = VOCABULARY.image, (VOCABULARY.end_of_chunk,) * framed
    vocabulary = dataclasses.replace(VOCABULARY, image_marker=(*frame, image, *frame))
    candidates = (1, 2, 4) if task == "selection" else ()
    query, config = query_at(task, 9, candidates=candidates), TaskConfig(full_items=8)
    one, many = (small_writer(CORPUS, vocabulary, config, ROOMY, tokens).write(query) for tokens in (1, 5))
    assert len(one.images) > 1
    taken = np.ones(len(one.tokens), int)
    taken[one.image_positions] = 5
    assert many.tokens.tolist() == np.repeat(one.tokens, taken).tolist()
    moved = np.cumsum(taken) - taken
    assert many.image_positions.tolist() == moved[one.image_positions].tolist()
    assert many.answer_positions.tolist() == moved[one.answer_positions].tolist()
    assert many.answer_targets.tolist() == one.answer_targets.tolist()

    tight = small_writer(CORPUS, vocabulary, config, RowShape(len(one.tokens), 64, 512), 5).write(query)
    assert len(tight.tokens) <= len(one.tokens) < len(many.tokens)
    assert tight.tokens[1:].tolist() == many.tokens[1 - len(tight.tokens) :].tolist()


def test_a_recommendation_at_the_last_id_asks_nothing():
    ids = [CORPUS.item_ids[item] for item in CORPUS.history(USER, 5)]
    config = TaskConfig(full_items=1, id_items=2, recommendation_at="last_id")
    text = text_of(query_at("recommendation", 4), config)
    assert text.startswith(f"<s> item_{ids[1]} item_{ids[2]} ")
    assert text.endswith(f" <answer> item_{ids[3]} item_{ids[4]} </s>")
    assert text.count("<answer>") == 1
    assert "?" not in text
    bare = dataclasses.replace(config, full_items=0)
    assert text_of(query_at("recommendation", 4), bare) == f"<s> item_{ids[2]} item_{ids[3]} item_{ids[4]} </s>"


@pytest.mark.parametrize("full_items", [0, 2])
def test_a_recommendation_at_the_last_id_is_one_more_of_what_the_history_teaches(full_items):
    config = TaskConfig(full_items=full_items, id_items=20, history_targets="next_item", recommendation_at="last_id")
    example = small_writer(CORPUS, VOCABULARY, config, ROOMY).write(query_at("recommendation", 7))
    history = VOCABULARY.items[CORPUS.history(USER, 8), 0]
    of_ids = np.flatnonzero(np.isin(example.tokens, history))
    assert example.tokens[of_ids].tolist() == history.tolist()
    assert example.answer_positions.tolist() == of_ids.tolist()
    assert example.answer_targets.tolist() == [*history[1:].tolist(), VOCABULARY.eos]


def test_a_search_is_asked_after_the_history_wherever_recommendations_are():
    position = next(p for p in range(1, 9) if CORPUS.categories[int(CORPUS.items[CORPUS.offsets[USER] + p])])
    query = query_at("search", position)
    assert text_of(query, TaskConfig(recommendation_at="last_id")) == text_of(query, TaskConfig())


def test_without_ids_there_is_no_last_id_to_answer_at():
    with pytest.raises(ValueError, match="no last id"):
        text_of(
            query_at("recommendation", 4),
            TaskConfig(history_ids=False, history_targets="none", recommendation_at="last_id"),
        )


def test_a_search_names_the_categories():
    position = next(p for p in range(1, 9) if CORPUS.categories[int(CORPUS.items[CORPUS.offsets[USER] + p])])
    query = query_at("search", position)
    words = ", ".join(CORPUS.categories[query.right[0]])
    question = f"Query: {words} What is the related item ID to the query based on the history?"
    assert question in text_of(query, TaskConfig())


def test_a_rating_is_answered_by_the_rating_and_what_was_written():
    event = next(e for e in CORPUS.texts if e not in CORPUS.offsets and not np.isnan(CORPUS.ratings[e]))
    user = int(np.searchsorted(CORPUS.offsets, event, side="right")) - 1
    query = Query("rating", user, event - int(CORPUS.offsets[user]), (int(CORPUS.items[event]),))
    rating = f"rate_{CORPUS.ratings[event]:g}"
    assert text_of(query, TaskConfig()).endswith(
        f"What is the rating and explanation for the item? <answer> {rating} very good</s>"
    )
    before = CORPUS.ratings[event - 1]
    if not np.isnan(before):
        assert f"item_{CORPUS.item_ids[CORPUS.items[event - 1]]} rate_{before:g} <|endofchunk|>" in text_of(
            query, TaskConfig(rated_history=True)
        )


def test_a_selection_names_all_right_candidates_in_order():
    first, second = CORPUS.history(USER, 6)[4:6].tolist()
    wrong = next(item for item in range(CORPUS.num_items) if item not in CORPUS.history(USER, 25))
    query = Query("selection", USER, 4, (first, second), (second, wrong, first))
    assert text_of(query, TaskConfig()).endswith("for the user? <answer> s_1 s_3 </s>")


@pytest.mark.parametrize("targets", ["reconstruct", "next_item", "both", "none"])
def test_history_targets(targets):
    config = TaskConfig(full_items=2, id_items=3, history_targets=targets)
    example = small_writer(CORPUS, VOCABULARY, config, ROOMY).write(query_at("recommendation", 7))
    history = VOCABULARY.items[CORPUS.history(USER, 8), 0]
    asked = {int(p): int(t) for p, t in zip(example.answer_positions, example.answer_targets, strict=True)}
    last = len(example.tokens) - 2
    assert asked.pop(last) == VOCABULARY.eos
    assert asked.pop(last - 1) == history[7]
    if targets == "none":
        assert not asked
        return
    assert [asked.pop(place) for place in (1, 2, 3)] == history[3:6].tolist()  # bare ids foretell the next id
    shown = [int(place) for place in np.flatnonzero(example.tokens == VOCABULARY.answer)[:2]]
    own = {place: history[5 + number] for number, place in enumerate(shown)}
    following = {place + 1: history[6 + number] for number, place in enumerate(shown)}
    assert asked == {"reconstruct": own, "next_item": following, "both": own | following}[targets]


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
row_shapes = st.builds(RowShape, tokens=st.integers(160, 400), images=st.integers(3, 8), answers=st.integers(8, 40))


@settings(max_examples=40, deadline=None)
@given(config=configs, row_shape=row_shapes, number=st.integers(0, 500), image_tokens=st.sampled_from([1, 3]))
def test_every_example_is_whole_within_its_budget_and_asked_as_it_was_trained(config, row_shape, number, image_tokens):
    query = DRAWN[number]
    writer = small_writer(CORPUS, VOCABULARY, config, row_shape, image_tokens)
    trained, asked = writer.write(query), writer.write(query, ask=True)
    assert all(size <= room for size, room in zip(trained.size, dataclasses.astuple(row_shape), strict=True))
    assert trained.tokens[0] == VOCABULARY.bos
    assert trained.tokens[-1] == VOCABULARY.eos
    assert (trained.tokens == VOCABULARY.image).sum() == image_tokens * len(trained.images)
    assert len(set(trained.answer_positions.tolist())) == len(trained.answer_positions)
    markers = [VOCABULARY.image, VOCABULARY.answer, VOCABULARY.end_of_chunk]
    assert not np.isin(trained.answer_targets, markers).any()
    assert len(asked.tokens) < row_shape.tokens
    # Where there is no room for the whole history, how much is trained on hangs on the answer's length.
    writer = small_writer(CORPUS, VOCABULARY, config, ROOMY, image_tokens)
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
    second = writer.write(query, ask=True, begun=trained.tokens[length : length + 1])
    np.testing.assert_array_equal(second.tokens, trained.tokens[: length + 1])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_answer_consists_of_the_tokens_that_its_task_names_and_the_end(task, split):
    names = TASKS[task].answer_tokens(VOCABULARY)
    writer = small_writer(CORPUS, VOCABULARY, TaskConfig(full_items=0, history_targets="none"), ROOMY)
    queries = held_out_queries(CORPUS, split, task, HAS_CODES)
    assert queries
    for query in queries:
        answer = writer.write(query).answer_targets
        assert answer[-1] == VOCABULARY.eos
        assert names is None or np.isin(answer[:-1], names).all()
        if task == "rating":
            assert names is None
            assert answer[0] in VOCABULARY.ratings


@pytest.mark.parametrize("task", TASKS)
def test_a_history_without_ids_is_reported_by_images_and_words_alone(task):
    """Of rating the ratings stay, without which a user's mean cannot be known."""
    config = TaskConfig(full_items=3, history_targets="none", history_ids=False)
    item_at = CORPUS.items[CORPUS.offsets[USER] :]
    query = query_at(task, next(position for position in range(6, 12) if HAS_CODES[item_at[position]]))
    query = dataclasses.replace(query, candidates=(*query.right, 0, 1))
    example = small_writer(CORPUS, VOCABULARY, config, ROOMY).write(query, ask=True)
    assert not np.isin(example.tokens, VOCABULARY.items).any()
    whole = small_writer(CORPUS, VOCABULARY, dataclasses.replace(config, history_ids=True), ROOMY).write(
        query, ask=True
    )
    kept = whole.tokens[~np.isin(whole.tokens, VOCABULARY.items)]
    assert [t for t in example.tokens if t != VOCABULARY.answer] == [t for t in kept if t != VOCABULARY.answer]
    assert np.isin(example.tokens, VOCABULARY.ratings).any() == (task == "rating")
    assert example.images.tolist() == whole.images.tolist()


@pytest.mark.parametrize("other", [{"history_targets": "next_item"}, {"history_targets": "none", "id_items": 2}])
def test_ids_cannot_be_shown_bare_or_predicted_where_they_are_not_shown(other):
    with pytest.raises(ValueError, match="history_ids False leaves no bare ids"):
        small_writer(CORPUS, VOCABULARY, TaskConfig(history_ids=False, **other), ROOMY)


@pytest.mark.parametrize("number", range(40))
def test_targets_without_bare_ids_are_the_labels_of_the_reference(number):
    query = DRAWN[number]
    example = small_writer(CORPUS, VOCABULARY, TaskConfig(full_items=4), ROOMY).write(query)
    mask = answer_mask(
        example.tokens,
        answer=VOCABULARY.answer,
        end_of_chunk=VOCABULARY.end_of_chunk,
        eos=VOCABULARY.eos,
        never=(VOCABULARY.image,),
    )
    labels = np.where(mask, example.tokens, -100)
    written = np.full_like(labels, -100)
    written[example.answer_positions + 1] = example.answer_targets
    np.testing.assert_array_equal(written, labels)


@pytest.mark.parametrize("task", ["recommendation", "search"])
def test_the_question_is_asked_along_the_bare_ids(task):
    config = TaskConfig(full_items=0, id_items=100, ask_every=5, history_targets="next_item", history_weight=0.25)
    position = next(p for p in range(24, 12, -1) if CORPUS.categories[int(CORPUS.items[CORPUS.offsets[USER] + p])])
    example = small_writer(CORPUS, VOCABULARY, config, ROOMY).write(query_at(task, position))
    history = CORPUS.history(USER, position + 1)
    tokens = example.tokens.tolist()
    ids = [token for token in tokens if token in VOCABULARY.items[:, 0]]
    assert ids == VOCABULARY.items[history, 0].tolist()  # every item once, in order
    asked = {int(p): (int(t), float(w)) for p, t, w in
             zip(example.answer_positions, example.answer_targets, example.answer_weights, strict=True)}  # fmt: skip
    weight = 2.0 if task == "recommendation" else 1.0
    places = np.flatnonzero(example.tokens == VOCABULARY.answer).tolist()
    assert len(places) >= 3
    for place in places:
        assert asked.pop(place) == (tokens[place + 1], weight)
        assert tokens[place + 2] == (VOCABULARY.end_of_chunk if place != places[-1] else VOCABULARY.eos)
    assert asked.pop(len(tokens) - 2) == (VOCABULARY.eos, weight)
    following = dict(itertools.pairwise(ids))
    assert {tokens[p]: t for p, (t, _) in asked.items()} == following  # and each foretells the next
    assert {w for _, w in asked.values()} == {weight * 0.25}


def test_history_targets_count_what_they_are_set_to():
    config = TaskConfig(full_items=2, id_items=3, history_weight=0.25)
    example = small_writer(CORPUS, VOCABULARY, config, ROOMY).write(query_at("recommendation", 7))
    of_answer = example.answer_positions >= len(example.tokens) - 3
    assert of_answer.sum() == 2
    np.testing.assert_array_equal(example.answer_weights, np.where(of_answer, 2.0, 0.5))


def test_a_question_larger_than_the_budget_is_refused_in_words():
    with pytest.raises(ValueError, match="raise row_shape"):
        text_of(query_at("recommendation", 3), TaskConfig(), RowShape(tokens=3, images=4, answers=8))


def test_training_never_sees_what_is_held_out():
    held_out = {
        (user, int(CORPUS.items[event]))
        for user in range(CORPUS.num_users)
        for event in range(CORPUS.offsets[user], CORPUS.offsets[user + 1])
        if CORPUS.splits[event] != TRAIN
    }
    for query in drawn(CORPUS, count=2000):
        seen = {*CORPUS.history(query.user, query.position).tolist(), *query.right}
        assert not any((query.user, item) in held_out for item in seen)


def test_validation_questions_never_show_a_test_item():
    for task in TASKS:
        for query in held_out_queries(CORPUS, "validation", task, HAS_CODES):
            last = int(CORPUS.items[CORPUS.offsets[query.user + 1] - 1])
            shown = {*CORPUS.history(query.user, query.position).tolist(), *query.right}
            assert last not in shown


def test_each_epoch_asks_every_user_once_and_the_mix_holds():
    mix = {"recommendation": 2, "search": 0, "rating": 0, "selection": 2}
    queries = TrainingQueries(CORPUS, QueryConfig(mix=mix), seed=0)
    size = len(queries.users)
    asked, _ = queries.draw(0, 3 * size)
    epochs = asked.users.reshape(3, size)
    assert (np.sort(epochs, axis=1) == queries.users).all()
    assert (epochs[0] != epochs[1]).any()
    rest, _ = queries.draw(2, 2 * size)  # which goes on in the fifth epoch
    assert (np.sort(rest.users.reshape(2, size), axis=1) == queries.users).all()
    tasks = collections.Counter(query.task for query in queries.draw(0, 2000)[0])
    assert tasks["search"] == tasks["rating"] == 0
    assert abs(tasks["selection"] / 2000 - 0.5) < 0.05  # four standard deviations of a fair coin thrown 2,000 times


def test_the_stream_does_not_depend_on_who_reads_it():
    one = TrainingQueries(CORPUS, QueryConfig(), seed=3)
    other = TrainingQueries(CORPUS, QueryConfig(), seed=3)
    forwards = [list(one.draw(block, 50)[0]) for block in range(4)]
    assert forwards == [list(other.draw(block, 50)[0]) for block in reversed(range(4))][::-1]
    assert forwards[0] != forwards[1]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_loss_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"tasks.loss_weights.search .* must be 0 or more"):
        TaskConfig(loss_weights={"search": weight})
