"""Questions that nobody knows the answer to: of somebody new, in free words, after all that was met."""

import numpy as np
import pytest

from data_pipelines.content import training_counts
from data_pipelines.corpus import build_corpus, with_user
from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks import TASKS, Query, TaskData
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import held_out_queries
from tests.data_pipelines.small import small_corpus, small_vocabulary, small_writer

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS, images=True)
ROOMY = RowShape(tokens=2048, images=64, answers=512)
SHORT = TaskConfig(full_items=2, id_items=8)
USER = int(np.argmax(np.diff(CORPUS.offsets)))
NEW = CORPUS.num_users
LENGTH = int(CORPUS.offsets[USER + 1] - CORPUS.offsets[USER])


def copied(length: int = LENGTH):
    """The corpus with somebody who met what `USER` did."""
    start = CORPUS.offsets[USER]
    return with_user(CORPUS, "new", CORPUS.items[start : start + length], CORPUS.ratings[start : start + length])


def writer(config: TaskConfig = SHORT, row_shape: RowShape = ROOMY):
    return small_writer(CORPUS, VOCABULARY, config, row_shape)


def open_question(task: int, user: int, length: int = LENGTH) -> Query:
    fields = {"search": {"words": "Comedy"}, "image": {"words": "Comedy"}, "selection": {"candidates": (1, 2, 3)}}.get(
        task, {}
    )
    return Query(task, user, length, (5,) if task == "rating" else (), **fields)


def test_a_new_user_stands_behind_all_others_and_changes_nothing_of_theirs():
    items, ratings = [3, 0, 3], [4.5, float("nan"), 1.0]
    corpus = with_user(CORPUS, "new", items, ratings)
    assert corpus.num_users == CORPUS.num_users + 1
    assert corpus.user_ids[-1] == "new"
    assert corpus.history(NEW, 3).tolist() == items
    np.testing.assert_array_equal(corpus.ratings[-3:], np.array(ratings, np.float32))
    for name in ("offsets", "items", "times", "ratings", "splits"):
        before, after = getattr(CORPUS, name), getattr(corpus, name)
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after[: len(before)], before)
    assert all(len(x) == corpus.offsets[-1] for x in (corpus.items, corpus.times, corpus.ratings, corpus.splits))
    for split in (1, 2):
        np.testing.assert_array_equal(corpus.held_out(split), CORPUS.held_out(split))
    np.testing.assert_array_equal(training_counts(corpus), training_counts(CORPUS))  # it is no training interaction
    assert with_user(corpus, "another", [1], [2.0]).history(NEW + 1, 1).tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("u3", [1], [1.0]), "user u3 occurs twice"),
        (("new", [], []), "has no interactions"),
        (("new", [1, 40], [1.0, 1.0]), "item numbers must be at least 0 and below 40"),
        (("new", [-1], [1.0]), "item numbers must be at least 0 and below 40"),
        (("new", [1, 2], [1.0]), "1 ratings for 2 items"),
    ],
)
def test_what_is_no_user_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        with_user(CORPUS, *arguments)
    assert isinstance(error.value, DataError) == ("u3" in message or "no interactions" in message)


def test_a_writer_goes_on_with_other_users_without_tokenising_anything(monkeypatch):
    before, question = writer(), Query("recommendation", USER, 4, (int(CORPUS.history(USER, 5)[4]),))
    expected = before.write(question)
    monkeypatch.setattr(type(VOCABULARY), "encode_all", None)
    after = before.of(copied())
    np.testing.assert_array_equal(after.write(question).tokens, expected.tokens)
    assert before.corpus is CORPUS
    with pytest.raises(ValueError, match="can only be reused for a corpus with the same items"):
        before.of(small_corpus(num_items=39))


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("task", TASKS)
def test_an_open_question_hangs_on_the_history_alone(task, every):
    asked = writer(TaskConfig(full_items=2, id_items=12, ask_every=every)).of(copied())
    first, second = (asked.write(open_question(task, user), ask=True) for user in (USER, NEW))
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.answer_positions.tolist() == [len(first.tokens) - 1]
    assert first.answer_targets.tolist() == [VOCABULARY.eos]


@pytest.mark.parametrize("task", TASKS)
def test_an_open_question_reads_as_one_whose_answer_is_known(task):
    """Of the same history, asked about the item that did come."""
    can_be_asked = TaskData.of(CORPUS, VOCABULARY.image_codes.has_codes).can_generate
    position = next(
        p
        for p in range(3, LENGTH)
        if can_be_asked[CORPUS.items[CORPUS.offsets[USER] + p]]
        and not np.isnan(CORPUS.ratings[CORPUS.offsets[USER] + p])
    )
    item = int(CORPUS.items[CORPUS.offsets[USER] + position])
    known = Query(task, USER, position, (item,), (item, 1, 2) if task == "selection" else ())
    words = {"words": ", ".join(CORPUS.categories[item])}
    fields = {"search": words, "image": words, "selection": {"candidates": known.candidates}}
    unknown = Query(task, NEW, position, (item,) if task == "rating" else (), **fields.get(task, {}))
    tokens = [writer().of(copied(position)).write(query, ask=True).tokens for query in (known, unknown)]
    np.testing.assert_array_equal(*tokens)


def test_a_search_is_for_any_words():
    text = VOCABULARY.decode(writer().write(Query("search", USER, LENGTH, (), words="a blue house"), ask=True).tokens)
    assert "Query: a blue house What is the related item ID to the query based on the history?" in text
    known = Query("search", USER, 4, (int(CORPUS.history(USER, 5)[4]),), words="a blue house")
    assert "Query: a blue house What" in VOCABULARY.decode(writer().write(known).tokens)


@pytest.mark.parametrize("tokens", [40, 64, 96])
def test_an_open_question_leaves_room_for_an_item(tokens):
    for user in range(CORPUS.num_users):
        length = int(CORPUS.offsets[user + 1] - CORPUS.offsets[user])
        example = writer(row_shape=RowShape(tokens, 4, 64)).write(
            open_question("recommendation", user, length), ask=True
        )
        assert len(example.tokens) + VOCABULARY.depth + 1 <= tokens


@pytest.mark.parametrize("task", TASKS)
def test_an_open_question_cannot_be_trained_on(task):
    with pytest.raises(ValueError, match=f"the {task} question .* is open"):
        writer().write(open_question(task, USER))


@pytest.mark.parametrize("shape", [RowShape(140, 8, 60), RowShape(2048, 8, 60)], ids=["few tokens", "few answers"])
def test_the_history_of_a_prompt_does_not_tell_how_long_the_answer_is(shape):
    def asked(text: str) -> list[list[int]]:
        users = [
            User(f"u{user}", tuple(
                Interaction(f"i{(user + time) % 12}", time, 1.0 + time % 5, text if time == 9 else "good strings")
                for time in range(10)
            ))
            for user in range(4)
        ]  # fmt: skip
        corpus = build_corpus([Item(f"i{number}", f"Thing {number}") for number in range(12)], users)
        writer = small_writer(corpus, small_vocabulary(corpus), TaskConfig(history_targets="next_item"), shape)
        queries = [query for task in ("rating", "selection") for query in held_out_queries(corpus, "test", task)]
        return [example.tokens.tolist() for example in writer.write_all(queries, ask=True)]

    assert asked("bad") == asked("bad " * 30)
