"""No record ends a run: whatever items are called and users did, examples fit, and what is left out is counted."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpus import Corpus, build_corpus, split_by_users, with_user
from data_pipelines.errors import DataError
from data_pipelines.images import ImageConfig, ImageStore
from data_pipelines.loader import SHORTENED, BlockPlanner, LoaderConfig, training_batches
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks import TASKS, Queries, Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape, longest_kept
from data_pipelines.tasks.prompt import PromptWriter, prompt_texts
from data_pipelines.tasks.queries import QueryConfig, TrainingQueries, held_out
from data_pipelines.tasks.registry import default_shares
from data_pipelines.tasks.row_checks import check_row_shape, least_row_shape, long_texts
from data_pipelines.vocabulary import Vocabulary, VocabularyConfig, attribute_texts, build_vocabulary
from tests.data_pipelines.small import drawn, image

ROW_SHAPE = RowShape(tokens=160, images=6, answers=48)
SHORT = TaskConfig(full_items=2, id_items=10, history_targets="next_item")
BLOCKS = LoaderConfig(batch_size=2, block_examples=60)
NOTHING_LEFT = "selection where nothing is left unmet"
UNBROKEN = "".join(np.random.default_rng(0).choice(list("qwertzuiop"), 1600))
CONTROLS = "</s> <s> <pad> <image> <|endofchunk|> <answer> s_1 rate_5 item_3"


def items_of(*titles: str) -> list[Item]:
    return [
        Item(f"i{number}", title, (("Genres", "Drama"), ("Title", title)), ("Drama",))
        for number, title in enumerate(titles)
    ]


def user_of(name: str, *met: int, ratings: tuple[float, ...] = (), texts: tuple[str, ...] = ()) -> User:
    ratings, texts = ratings or (4.0,) * len(met), texts or ("",) * len(met)
    return User(
        name, tuple(Interaction(f"i{i}", rating=r, text=t) for i, r, t in zip(met, ratings, texts, strict=True))
    )


def films(count: int) -> list[Item]:
    return items_of(*(f"Film {number}" for number in range(count)))


OTHERS = [user_of(f"o{number}", *((number + step) % 8 for step in range(6))) for number in range(6)]


def writer_of(
    corpus: Corpus, config: TaskConfig = SHORT, row_shape: RowShape = ROW_SHAPE, vocabulary: Vocabulary | None = None
) -> PromptWriter:
    shown = VocabularyConfig(trained_size=320, round_to=8)
    vocabulary = vocabulary or build_vocabulary(corpus, shown, prompt_texts())
    has_image = np.arange(corpus.num_items) % 3 != 0
    return PromptWriter(
        corpus, vocabulary, config, row_shape, attributes=attribute_texts(corpus, shown), has_image=has_image
    )


def assert_fits(writer: PromptWriter, query: Query) -> None:
    """An example is within its row shape; its only control tokens are those that a prompt is written with."""
    example, vocabulary = writer.write(query), writer.vocabulary
    assert all(size <= room for size, room in zip(example.size, dataclasses.astuple(writer.row_shape), strict=True))
    tokens = example.tokens
    assert tokens[0] == vocabulary.bos
    assert np.flatnonzero(tokens == vocabulary.eos).tolist() == [len(tokens) - 1]
    assert np.flatnonzero(tokens == vocabulary.image).tolist() == example.image_positions.tolist()
    assert len(example.images) == len(example.image_positions)
    assert not np.isin(tokens[1:], [vocabulary.bos, vocabulary.pad]).any()
    assert np.isin(example.answer_targets, [vocabulary.eos, *range(vocabulary.size)]).all()
    assert vocabulary.decode(tokens).startswith("<s> ")
    asked = writer.write(query, ask=True)
    assert len(asked.tokens) < writer.row_shape.tokens
    roomy = copy.copy(writer)  # in a full row, how much of the history is trained on depends on the answer's length
    roomy.row_shape = RowShape(tokens=2**16, images=2**12, answers=2**15)
    asked = roomy.write(query, ask=True)
    np.testing.assert_array_equal(asked.tokens, roomy.write(query).tokens[: len(asked.tokens)])


PILLS: dict[str, tuple[list[Item], list[User]]] = {
    "1,600 characters without blanks": (items_of(UNBROKEN, *"abcdefgh"), OTHERS),
    "Chinese without blanks": (items_of(*["漢字電影" * 400] * 9), OTHERS),
    "a megabyte": (items_of("y" * 2**20, *"abcdefgh"), OTHERS),
    "a megabyte of categories": (
        [dataclasses.replace(item, categories=("z" * 2**20,)) for item in films(8)], OTHERS,
    ),
    "control tokens in every field": (
        [
            Item(f"i{number}", CONTROLS, (("Title", CONTROLS), ("<image>", "</s>")), (CONTROLS, "<image>"))
            for number in range(8)
        ],
        [
            *OTHERS,
            user_of("</s>", 1, 2, 3, 4, 5, texts=(CONTROLS,) * 5),
        ],
    ),
    "odd characters": (
        items_of("nul\0in", "line\nbreak\ttab", "\x1b[31mred", "\u202eevil مرحبا", "👩\u200d👧", "", "a|b", "{{7}}"),
        OTHERS,
    ),
    "a user who met everything": (films(8), [*OTHERS, user_of("all", *range(8), 0, 1)]),
    "all users met everything": (films(4), [user_of(f"u{number}", *range(4), 0, 1) for number in range(3)]),
    "repeats": (films(8), [*OTHERS, user_of("again", 3, 3, 3, 3, 3, 3)]),
    "nothing but repeats": (films(8), [user_of("again", *[3] * 9)]),
    "unrated": (films(8), [user_of("u", *range(6), ratings=(math.nan,) * 6)]),
    "rated where it is held out alone": (films(8), [user_of("u", *range(6), ratings=(*[math.nan] * 4, 3.0, 5.0))]),
    "one item": (films(1), [user_of("u", 0, 0, 0, 0)]),
    "two items": (films(2), [user_of("u", 0, 1, 0, 1, 1)]),
    "three items": (films(3), [user_of("u", 0, 1, 0, 1, 1), user_of("v", 2, 2, 2, 2)]),
    "one user": (films(8), [user_of("u", 0, 1, 2, 3)]),
    "a long history": (films(8), [user_of("u", *[number % 7 for number in range(3000)])]),
    "long reviews": (
        films(8), [user_of("u", *range(6), texts=("漢" * 10**5, "word " * 10**5, "", "x" * 10**6, "", ""))],
    ),
    "no texts at all": ([Item(f"i{number}", "") for number in range(8)], OTHERS),
    "users with one interaction": (films(8), [*OTHERS, *(user_of(f"one{n}", n) for n in range(5)), User("none", ())]),
}  # fmt: skip


@pytest.mark.parametrize("name", PILLS)
def test_three_blocks_are_planned_and_every_example_fits(name):
    corpus = build_corpus(*PILLS[name])
    writer, queries = writer_of(corpus), TrainingQueries(corpus, QueryConfig(), seed=0)
    check_row_shape(writer, queries.tasks)
    planner = BlockPlanner(queries, writer, BLOCKS, seed=0)
    for block in range(3):
        assert sum(map(len, planner(block).rows)) == BLOCKS.block_examples
    for query in drawn(corpus, count=3 * BLOCKS.block_examples):
        assert_fits(writer, query)
        assert len(set(query.right)) == len(query.right)
        assert query.task != "selection" or set(query.right) < set(query.candidates)
    for split, task in itertools.product(("validation", "test"), TASKS):
        found = held_out(corpus, split, task)
        assert len(found.queries) + sum(found.left_out.values()) == (corpus.splits == SPLIT[split]).sum()
        for query in found.queries:
            assert_fits(writer, query)


SPLIT = {"validation": 1, "test": 2}


def test_what_is_left_out_reaches_the_log_once():
    corpus = build_corpus(*PILLS["all users met everything"])
    config = QueryConfig(default_shares() | {"recommendation": 0, "search": 0, "rating": 0})
    queries, store = TrainingQueries(corpus, config, seed=0), ImageStore(image, 8, ImageConfig())
    assert {query.task for query in drawn(corpus, config, count=60)} == {"recommendation"}
    stream = training_batches(queries, writer_of(corpus), store, BLOCKS, seed=0)
    batches = list(itertools.takewhile(lambda batch: batch.next_position.block < 2, stream))
    stream.close()
    assert batches[0].left_out == {NOTHING_LEFT: 60}
    assert sum(bool(batch.left_out) for batch in batches) == 2
    again = training_batches(queries, writer_of(corpus), store, BLOCKS, seed=0, start=batches[0].next_position)
    assert next(again).left_out == {}  # the block has begun
    again.close()


def test_a_text_is_cut_only_in_questions_that_it_does_not_fit():
    corpus = build_corpus(*PILLS["1,600 characters without blanks"])
    writer, queries = writer_of(corpus), TrainingQueries(corpus, QueryConfig(), seed=0)
    block = BlockPlanner(queries, writer, BLOCKS, seed=0)(0)
    assert 0 < block.left_out[SHORTENED] < BLOCKS.block_examples
    (selection, _) = long_texts(writer, ["selection", "rating"])
    assert selection == "1 items have texts of more than 49 tokens, which are truncated in selection questions"
    asked = [Query("selection", 0, 3, (4,), candidates) for candidates in ((4, 0, 5), (4, 5, 6))]
    assert writer.lay_out(Queries.of(asked)).shortened.tolist() == [True, False]
    cut = writer.write(asked[0])
    assert len(cut.tokens) == ROW_SHAPE.tokens
    text = writer.vocabulary.decode(cut.tokens)
    assert "Genres Drama Title d" in text
    assert f"Genres Drama Title {UNBROKEN[:9]}" in text
    assert "Genres Drama Title e" in text
    assert text.endswith("Can you select the suitable item from above for the user? <answer> s_1 </s>")


def test_a_search_for_a_megabyte_is_asked_at_once():
    writer = writer_of(build_corpus(films(8), OTHERS))
    example = writer.write(Query("search", 0, 4, (), words="x" * 2**20 + "</s>"), ask=True)
    assert len(example.tokens) + writer.vocabulary.depth + 1 == ROW_SHAPE.tokens


@given(st.lists(st.integers(0, 30), max_size=5), st.integers(0, 160))
def test_the_longest_texts_are_cut_to_one_length(lengths, over):
    (longest,) = longest_kept(np.array([lengths], np.int64), np.array([over])).tolist()
    kept = [min(length, longest) for length in lengths]
    assert sum(kept) <= max(sum(lengths) - over, 0)
    shorter = {length for length, before in zip(kept, lengths, strict=True) if length < before}
    assert shorter <= {longest}
    assert sum(lengths) - over - sum(kept) < max(len(lengths), 1)


@pytest.mark.parametrize(
    ("task", "small", "least"),
    [
        ("selection", {"images": 2}, "row_shape.images is 2 and must be at least 3"),
        ("selection", {"answers": 2}, "row_shape.answers is 2 and must be at least 3"),
        (
            "rating",
            {"images": 0, "answers": 1},
            "row_shape.images is 0 and must be at least 1; row_shape.answers is 1 and must be at least 2",
        ),
        ("recommendation", {"answers": 1}, "row_shape.answers is 1 and must be at least 2"),
        ("search", {"tokens": 5}, "row_shape.tokens is 5 and must be at least 6"),
    ],
)
def test_a_budget_without_room_for_a_question_is_refused_with_the_least(task, small, least):
    corpus = build_corpus(films(8), OTHERS)
    writer = writer_of(corpus, row_shape=dataclasses.replace(ROW_SHAPE, **small))
    with pytest.raises(ValueError, match=f"a {task} question does not fit: {least} .*--queries.mix.{task} 0"):
        check_row_shape(writer, [task])
    enough = writer_of(corpus, row_shape=least_row_shape(writer, task), vocabulary=writer.vocabulary)
    check_row_shape(enough, [task])
    asked = held_out(corpus, "test", task).queries
    for query in asked:
        assert_fits(enough, query)
    with pytest.raises(ValueError, match="raise row_shape"):
        list(map(writer.write, asked))


def test_a_source_without_images_needs_no_room_for_any():
    corpus = build_corpus(films(8), OTHERS)
    writer = writer_of(corpus, dataclasses.replace(SHORT, images=False), dataclasses.replace(ROW_SHAPE, images=0))
    check_row_shape(writer, ["recommendation", "search", "rating", "selection"])


@pytest.mark.parametrize("count", [1, 2])
def test_a_catalogue_too_small_to_select_from_says_so_at_the_start(count):
    corpus = build_corpus(films(count), [user_of("u", *[0, count - 1] * 3)])
    queries = TrainingQueries(corpus, QueryConfig(), seed=0)
    assert queries.notes == [
        f"selection is left out: it needs 3 items, but the catalogue has {count}; --queries.mix.selection 0 leaves it "
        "out without this notice"
    ]
    assert "selection" not in queries.tasks
    with pytest.raises(
        ValueError, match=r"enough items to select from.*--queries.mix.selection 0 leaves it out without this notice"
    ):
        TrainingQueries(corpus, QueryConfig({"recommendation": 0, "search": 0, "rating": 0, "selection": 1}), seed=0)
    for split in ("validation", "test"):
        found = held_out(corpus, split, "selection")
        assert (found.queries, list(found.left_out.values())) == ([], [1])


def test_a_user_who_met_all_but_one_is_asked_to_select_two_right_items_or_none():
    corpus = build_corpus(films(8), [user_of("most", *range(7))])
    asked = drawn(corpus, QueryConfig({"recommendation": 0, "search": 0, "rating": 0, "selection": 1}), count=100)
    assert {len(query.right) for query in asked if query.task == "selection"} == {1, 2}
    held_out_one = {5, 6, 7}  # of training: neither of the validation, nor of the test, nor met
    assert all(set(query.candidates) - set(query.right) <= held_out_one for query in asked)


def test_ratings_that_are_held_out_alone_are_neither_learnt_nor_asked():
    corpus = build_corpus(*PILLS["rated where it is held out alone"])
    queries = TrainingQueries(corpus, QueryConfig(), seed=0)
    assert queries.notes == [
        "rating is left out: no training interaction has a rating; --queries.mix.rating 0 leaves it out "
        "without this notice"
    ]
    assert "rating" not in {query.task for query in drawn(corpus, count=200)}
    reason = "whose rating cannot be predicted, because no training interaction has a rating"
    assert held_out(corpus, "test", "rating") == dataclasses.replace(
        held_out(corpus, "test", "rating"), queries=[], left_out={reason: 1}
    )
    shown = writer_of(with_user(corpus, "new", [1, 2], [5.0, 3.0]))  # with ratings that have no token
    assert shown.write(Query("rating", 1, 2, (3,)), ask=True).tokens[0] == shown.vocabulary.bos


def test_evaluation_counts_whom_it_leaves_out_by_reason():
    nan = math.nan
    items = [*films(8)[:7], Item("i7", "Film 7")]
    users = [
        user_of("rated", 0, 1, 2, 3), user_of("unrated", 0, 1, 2, 3, ratings=(1, 1, 1, nan)),
        user_of("without categories", 0, 1, 2, 7), user_of("all", *range(8), 0),
    ]  # fmt: skip
    corpus = build_corpus(items, users)
    assert held_out(corpus, "test", "recommendation").left_out == {}
    assert held_out(corpus, "test", "rating").left_out == {"whose answer has no rating": 1}
    assert held_out(corpus, "test", "search").left_out == {"whose answer has no categories to search by": 1}
    assert held_out(corpus, "test", "selection").left_out == {
        "who interacted with so many items that too few wrong candidates are left": 1
    }
    assert held_out(corpus, "test", "image").left_out == {"whose answer has no image codes or no categories": 4}
    alone = build_corpus(items, [*users, User("alone", (Interaction("i0", split="test"),))])
    assert held_out(alone, "test", "recommendation").left_out == {"without a history before their answer": 1}


def test_980_levels_are_refused_with_the_remedy_which_works():
    ratings = np.random.default_rng(0).uniform(-10, 10, (10, 100)).astype(np.float32)
    users = [user_of(f"u{number}", *[0, 1] * 50, ratings=tuple(row.tolist())) for number, row in enumerate(ratings)]
    corpus = build_corpus(films(8), users)
    with pytest.raises(DataError, match=r"980 different ratings, -\d.* to 9.*--vocabulary.rating-step 1 rounds"):
        build_vocabulary(corpus, VocabularyConfig(trained_size=320))
    vocabulary = build_vocabulary(corpus, VocabularyConfig(trained_size=320, rating_step=1.0))
    assert vocabulary.rating_levels == tuple(range(-10, 11))
    assert vocabulary.rating_levels[vocabulary.nearest_levels(np.array([3.6]))[0]] == 4
    with pytest.raises(ValueError, match="rating_step -1"):
        VocabularyConfig(rating_step=-1)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (VocabularyConfig, {"round_to": 0}),
        (VocabularyConfig, {"attribute_words": -1}),
        (VocabularyConfig, {"category_items": -1}),
        (TaskConfig, {"full_items": -1}),
        (TaskConfig, {"id_items": -1}),
        (TaskConfig, {"ask_every": -1}),
        (TaskConfig, {"explanation_words": -1}),
        (TaskConfig, {"history_weight": math.nan}),
    ],
)
def test_numbers_that_have_no_meaning_are_refused(kind, fields):
    with pytest.raises(ValueError, match=r"|".join(fields)):
        kind(**fields)


def test_a_share_that_is_infinite_is_refused():
    corpus = build_corpus(films(8), [user_of("u", *range(6))])
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        TrainingQueries(corpus, QueryConfig({"recommendation": 1, "search": math.inf}), seed=0)


def test_a_tokenizer_has_its_bytes_however_few_tokens_are_asked_for():
    corpus = build_corpus(films(8), [user_of("u", *range(6))])
    assert build_vocabulary(corpus, VocabularyConfig(trained_size=3), prompt_texts()).encode("x").size


def test_levels_that_read_alike_are_one():
    corpus = build_corpus(films(8), [user_of("u", *range(6), ratings=(1.0, 1.0000001, 2.0, 3.0, 1.0, 1.0))])
    vocabulary = build_vocabulary(corpus, VocabularyConfig(trained_size=320))
    assert vocabulary.rating_levels == (1.0, 2.0, 3.0)
    assert len(set(vocabulary.new_tokens)) == len(vocabulary.new_tokens)


titles = st.text(st.sampled_from("ab 漢<>/s_\0\n"), max_size=40) | st.sampled_from([CONTROLS, "x" * 900, "漢" * 700])
histories = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([math.nan, 1.0, 5.0]), titles), min_size=1, max_size=12
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(titles, st.lists(titles, max_size=2)), min_size=5, max_size=6),
    st.lists(histories, min_size=1, max_size=4).filter(lambda users: any(len(history) >= 4 for history in users)),
    st.integers(40, 400),
)
def test_any_source_can_be_trained_on_and_asked_about(described, histories, tokens):
    items = [
        Item(f"i{number}", title, (("Title", title),), tuple(categories))
        for number, (title, categories) in enumerate(described)
    ]
    made = [
        User(f"u{number}", tuple(Interaction(f"i{item}", rating=rating, text=text) for item, rating, text in history))
        for number, history in enumerate(histories)
    ]
    corpus = build_corpus(items, made)
    writer = writer_of(corpus, row_shape=dataclasses.replace(ROW_SHAPE, tokens=tokens))
    for query in drawn(corpus, count=20):
        assert_fits(writer, query)
    for split, task in itertools.product(("validation", "test"), TASKS):
        for query in held_out(corpus, split, task).queries:
            assert_fits(writer, query)


def test_too_few_users_to_learn_from_are_reported_in_one_line():
    with pytest.raises(DataError, match="no user has two training interactions"):
        TrainingQueries(build_corpus(films(8), [user_of("u", 0, 1, 2)]), QueryConfig(), seed=0)
    with pytest.raises(DataError, match="1 users have two or more interactions; a split by users needs at least ten"):
        split_by_users(build_corpus(films(8), [user_of("u", 0, 1)]), 0)
