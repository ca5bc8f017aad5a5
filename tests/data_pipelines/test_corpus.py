"""The corpus against a slow reading of the same records."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.corpus import SPLITS, TEST, TRAIN, VALIDATION, build_corpus, leave_one_out
from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME, Interaction, Item, User

ITEMS = [Item(f"i{number}", f"title {number}") for number in range(6)]

interactions = st.builds(
    Interaction,
    item_id=st.sampled_from([item.item_id for item in ITEMS]),
    time=st.integers(0, 5),  # few times, so that they tie
    rating=st.sampled_from([math.nan, 0.5, 3.0, 5.0]),
    text=st.sampled_from(["", "good"]),
)
users = st.lists(st.lists(interactions, max_size=6), min_size=1, max_size=5).filter(any)


def users_of(histories: list[list[Interaction]]) -> list[User]:
    return [User(f"u{number}", tuple(history)) for number, history in enumerate(histories)]


def met(*items: str, splits: tuple[str, ...] = ()) -> tuple[Interaction, ...]:
    splits = splits or ("",) * len(items)
    return tuple(Interaction(item, split=split) for item, split in zip(items, splits, strict=True))


@given(users)
def test_arrays_hold_what_the_records_say_in_stable_order_of_time(histories: list[list[Interaction]]) -> None:
    corpus = build_corpus(ITEMS, users_of(histories))
    kept = [(f"u{number}", history) for number, history in enumerate(histories) if history]
    assert corpus.user_ids == [name for name, _ in kept]
    assert corpus.offsets.tolist() == np.cumsum([0] + [len(history) for _, history in kept]).tolist()
    for user, (_, history) in enumerate(kept):
        numbered = sorted(enumerate(history), key=lambda pair: (pair[1].time, pair[0]))
        start = int(corpus.offsets[user])
        for event, (_, interaction) in enumerate(numbered, start):
            assert corpus.item_ids[corpus.items[event]] == interaction.item_id
            assert corpus.times[event] == interaction.time
            np.testing.assert_equal(corpus.ratings[event], np.float32(interaction.rating))
            assert corpus.texts.get(event, "") == interaction.text


@given(users)
def test_validation_and_test_never_meet_and_close_each_history(histories: list[list[Interaction]]) -> None:
    corpus = build_corpus(ITEMS, users_of(histories))
    for user in range(corpus.num_users):
        splits = corpus.splits[corpus.offsets[user] : corpus.offsets[user + 1]].tolist()
        expected = {1: [TRAIN], 2: [TRAIN, TEST]}.get(len(splits), [TRAIN] * (len(splits) - 2) + [VALIDATION, TEST])
        assert splits == expected
    asked = [set(zip(*map(np.ndarray.tolist, corpus.held_out(split)), strict=True)) for split in (VALIDATION, TEST)]
    assert not asked[0] & asked[1]
    assert len(asked[1]) == sum(len(history) > 1 for history in histories)


def test_no_answer_stands_in_its_own_history() -> None:
    corpus = build_corpus(ITEMS, [User("u", met("i0", "i1", "i2", "i3"))])
    for split, answer in ((VALIDATION, "i2"), (TEST, "i3")):
        (user,), (position,) = corpus.held_out(split)
        (target,) = corpus.targets(*corpus.held_out(split))
        assert corpus.item_ids[target] == answer
        assert target not in corpus.history(user, position)


def test_prescribed_splits_stand() -> None:
    user = User("u", met("i0", "i1", "i2", splits=("train", "train", "test")))
    assert leave_one_out(user) == [TRAIN, TRAIN, TEST]
    corpus = build_corpus(ITEMS, [user])
    assert corpus.held_out(VALIDATION)[0].size == 0


@pytest.mark.parametrize(
    "splits", [("test", "train"), ("test", "validation"), ("train", "validation", "validation"), ("test", "test")]
)
def test_prescribed_splits_out_of_order_are_refused(splits: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"user u: prescribed splits must be in the order"):
        leave_one_out(User("u", met(*["i0"] * len(splits), splits=splits)))


def test_a_held_out_interaction_without_history_is_not_asked() -> None:
    corpus = build_corpus(ITEMS, [User("u", met("i0", splits=("test",)))])
    assert corpus.splits.tolist() == [SPLITS["test"]]
    assert corpus.held_out(TEST)[0].size == 0


def test_unknown_times_keep_the_sources_order() -> None:
    corpus = build_corpus(ITEMS, [User("u", met("i3", "i0", "i2"))])
    assert corpus.times.tolist() == [NO_TIME] * 3
    assert [corpus.item_ids[item] for item in corpus.items] == ["i3", "i0", "i2"]


def test_a_time_missing_among_others_keeps_the_sources_order() -> None:
    events = (Interaction("i0", time=9), Interaction("i1"), Interaction("i2", time=4))
    corpus = build_corpus(ITEMS, [User("u", events)])
    assert [corpus.item_ids[item] for item in corpus.items] == ["i0", "i1", "i2"]


def test_levels_are_those_of_training_alone() -> None:
    rated = [
        dataclasses.replace(one, rating=rating) for one, rating in zip(met(*["i0"] * 4), (4, 2, 5, 1), strict=True)
    ]
    assert build_corpus(ITEMS, [User("u", tuple(rated))]).rating_levels == [2.0, 4.0]


@pytest.mark.parametrize(
    ("items", "users", "message"),
    [
        ([*ITEMS, ITEMS[2]], [User("u", met("i0"))], "item i2 occurs twice"),
        (ITEMS, [User("u", met("i0")), User("u", met("i1"))], "user u occurs twice"),
        (ITEMS, [User("u", met("i0", "nowhere"))], "user u, interaction 1: item nowhere is not in the catalogue"),
        ([], [User("u", ())], "the source has no items"),
        (ITEMS, [User("u", ())], "no user in the source has an interaction"),
    ],
)
def test_contradictions_are_refused_by_name(items: list[Item], users: list[User], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_corpus(items, users)
