"""Tables of interactions: cores, repeats, and the order in which users and what they met are read."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.schema import NO_TIME, Interaction, Item, User
from data_pipelines.sources import source as interactions
from data_pipelines.sources.source import COLUMNS, Counts, Source, codes, core, k_core, without_repeats

ids = st.integers(0, 7)
rows = st.lists(st.tuples(ids, ids), max_size=60)


def table(*met: tuple[str, str, int]) -> pl.DataFrame:
    """user, item, time; the rating is the row's number."""
    return pl.DataFrame([(*one, float(row), "") for row, one in enumerate(met)], COLUMNS, orient="row")


def fixpoint(users: np.ndarray, items: np.ndarray, user_core: int, item_core: int) -> np.ndarray:
    """Whole passes, until one changes nothing."""
    kept = np.ones(len(users), bool)
    while True:
        degree = np.bincount(users[kept], minlength=8), np.bincount(items[kept], minlength=8)
        stays = kept & (degree[0][users] >= user_core) & (degree[1][items] >= item_core)
        if (stays == kept).all():
            return kept
        kept = stays


@settings(deadline=None)
@given(rows, st.integers(0, 5), st.integers(0, 5))
def test_the_core_is_that_of_whole_passes(met: list[tuple[int, int]], user_core: int, item_core: int) -> None:
    users, items = np.array(met, np.int64).reshape(-1, 2).T
    found = k_core(users, items, user_core, item_core)
    assert found.tolist() == fixpoint(users, items, user_core, item_core).tolist()


def test_the_core_is_what_is_left_when_nothing_more_falls_away() -> None:
    def left(pairs: list[str], least: int) -> list[str]:
        kept = core(table(*((pair[0], pair[1], 0) for pair in pairs)), least, least)
        return [user + item for user, item in zip(kept["user"], kept["item"], strict=True)]

    chain, square = ["a1", "a2", "b2", "b3", "c3", "d1"], ["e1", "e2", "f1", "f2"]
    assert left(chain, 1) == chain
    assert left(chain, 2) == []
    assert left([*chain, *square], 2) == ["a1", "a2", *square]


@settings(deadline=None)
@given(rows, st.integers(1, 4))
def test_equal_cores_are_those_of_a_graph(met: list[tuple[int, int]], least: int) -> None:
    nx = pytest.importorskip("networkx")
    met = list(dict.fromkeys(met))  # a graph has an edge once
    users, items = np.array(met, np.int64).reshape(-1, 2).T
    graph = nx.Graph((f"user {user}", f"item {item}") for user, item in met)
    edges = nx.k_core(graph, least).edges
    kept = [(f"user {user}", f"item {item}") in edges for user, item in met]
    assert k_core(users, items, least, least).tolist() == kept


def test_a_round_touches_only_rows_of_those_that_fell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain, u0 - i0 - u1 - i1 - …, falls from its ends, one a round; whole passes would be 500 times 1,000 rows."""
    touched = []
    gather = interactions._gather
    monkeypatch.setattr(
        interactions, "_gather", lambda *arguments: touched.append(len(rows := gather(*arguments))) or rows
    )
    users, items = np.repeat(np.arange(500), 2)[1:], np.repeat(np.arange(500), 2)[:-1]
    assert not k_core(users, items, 2, 2).any()
    assert sum(touched) <= 2 * len(users)


def test_a_chain_falls_link_by_link_and_a_square_stays() -> None:
    chain = table(("a", "1", 0), ("a", "2", 0), ("b", "2", 0), ("b", "3", 0), ("c", "3", 0))
    square = table(("d", "8", 0), ("d", "9", 0), ("e", "8", 0), ("e", "9", 0))
    assert core(pl.concat([chain, square]), 2, 2).equals(square)
    assert core(chain, 1, 1) is chain


MET = (("u", "a", 30), ("v", "a", 10), ("u", "b", 20), ("u", "a", 10), ("u", "a", 10), ("u", "a", 30))


def test_of_repeats_the_first_or_the_last_in_time_stays() -> None:
    assert without_repeats(table(*MET), "first")["rating"].to_list() == [1, 2, 3]
    assert without_repeats(table(*MET), "last")["rating"].to_list() == [1, 2, 5]
    once = table(("u", "a", 1), ("u", "b", 1), ("v", "a", 1))
    assert without_repeats(once, "first").equals(once)


def test_where_a_time_is_unknown_the_order_of_the_table_stands() -> None:
    frame = table(("u", "b", 30), ("u", "a", NO_TIME), ("u", "b", 10), ("v", "c", 9), ("v", "d", 8))
    assert without_repeats(frame, "first")["rating"].to_list() == [0, 1, 3, 4]
    first, second = Source(frame, Item, Counts.of(frame)).users()
    assert [one.item_id for one in first.interactions] == ["b", "a", "b"]
    assert [one.item_id for one in second.interactions] == ["d", "c"]


def test_users_come_by_first_appearance_and_their_items_by_time_ties_as_they_stand() -> None:
    frame = table(*MET)
    source = Source(frame, lambda item: Item(item, item.upper()), Counts(9, 9, 9))
    assert list(source.items()) == [Item("a", "A"), Item("b", "B")]
    first, second = source.users()
    assert [(one.rating, one.time) for one in first.interactions] == [(3, 10), (4, 10), (2, 20), (0, 30), (5, 30)]
    assert second == User("v", (Interaction("a", 10, 1.0),))
    assert source.read == Counts(9, 9, 9)


def test_columns_may_be_absent_or_categories() -> None:
    frame = table(*MET).drop("rating", "text").with_columns(pl.col("user").cast(pl.Categorical), split=pl.lit("test"))
    first = next(Source(frame, Item, Counts.of(frame)).users()).interactions[0]
    assert (first.item_id, first.time, first.text, first.split) == ("a", 10, "", "test")
    assert math.isnan(first.rating)
    assert core(frame, 2, 1)["user"].unique().to_list() == ["u"]
    assert Counts.of(frame) == Counts(2, 2, 6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3)), min_size=1))
def test_histories_are_the_sorted_rows_of_each_user(met: list[tuple[str, str, int]]) -> None:
    frame = table(*met)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interactions, "USERS_A_PART", 2)
        users = list(Source(frame, Item, Counts.of(frame)).users())
    assert [user.user_id for user in users] == list(dict.fromkeys(user for user, _, _ in met))
    for user in users:
        theirs = [(item, time, float(row)) for row, (who, item, time) in enumerate(met) if who == user.user_id]
        found = [(one.item_id, one.time, one.rating) for one in user.interactions]
        assert found == sorted(theirs, key=lambda one: one[1])


def test_values_are_numbered_by_first_appearance() -> None:
    numbers, names = codes(pl.Series(["b", "a", "b", "c"], dtype=pl.Categorical))
    assert numbers.tolist() == [0, 1, 0, 2]
    assert names.to_list() == ["b", "a", "c"]
