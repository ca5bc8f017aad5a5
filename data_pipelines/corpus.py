"""All interactions of a source as flat arrays: which user interacted with which item, when, and in which split."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME, Item, User

TRAIN, VALIDATION, TEST, SHOWN = 0, 1, 2, 3
"""The split of an interaction. SHOWN interactions only appear in the history of a question; they are never a target."""
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """E interactions of U users with I items; the interactions of a user are contiguous, oldest first.

    From here on an item is identified by its index. The held-out interactions of a user follow all those that are
    trained on or shown, validation before test, so the interactions before position p never reveal a later answer.

    Attributes:
      attributes: for each item, (name, text) pairs.
      categories: for each item, the terms to search for it by.
      offsets: int64 [U + 1]; user u has the interactions offsets[u] to offsets[u + 1].
      items: int32 [E].
      times: int64 [E], seconds since 1970, -1 if unknown.
      ratings: float32 [E], NaN if unknown.
      splits: int8 [E], TRAIN, VALIDATION, TEST or SHOWN.
      texts: the texts written by users, keyed by the index of the interaction, in the order of the interactions.
    """

    item_ids: Sequence[str]
    titles: Sequence[str]
    attributes: Sequence[tuple[tuple[str, str], ...]]
    categories: Sequence[tuple[str, ...]]
    user_ids: Sequence[str]
    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    splits: np.ndarray
    texts: Mapping[int, str]

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @functools.cached_property
    def has_categories(self) -> np.ndarray:
        """Whether each item has categories to search for it by: bool [I]."""
        return np.fromiter(map(bool, self.categories), bool, self.num_items)

    @functools.cached_property
    def text_events(self) -> np.ndarray:
        """The indices of the interactions that have a text, ascending: int64 [len(texts)]."""
        events = getattr(self.texts, "events", None)
        return np.fromiter(self.texts, np.int64, len(self.texts)) if events is None else events

    @functools.cached_property
    def rating_levels(self) -> list[float]:
        """The distinct ratings of the training interactions, ascending; empty if the source has no ratings."""
        ratings = self.ratings[self.splits == TRAIN]
        return [float(level) for level in np.unique(ratings[~np.isnan(ratings)])]

    def history(self, user: int, position: int) -> np.ndarray:
        """Returns the items of the user's first `position` interactions, oldest first: int32 [position]."""
        start = self.offsets[user]
        return self.items[start : start + position]

    def held_out(self, split: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (users, positions), int32 [M] each: one pair for every user with a held-out interaction of `split`.

        `items[offsets[user] + position]` is the answer and everything before it is the history. Users whose held-out
        interaction is their first are left out, because there is no history to ask about.
        """
        events = np.flatnonzero(self.splits == split)
        users = np.searchsorted(self.offsets, events, side="right") - 1
        positions = events - self.offsets[users]
        asked = positions > 0
        return users[asked].astype(np.int32), positions[asked].astype(np.int32)

    def targets(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the items at `positions` in the users' histories: int32 [M]."""
        return self.items[self.offsets[users] + positions]


def split_by_users(corpus: Corpus, seed: int) -> Corpus:
    """Returns the corpus with disjoint sets of users for training, validation and testing.

    Of the users with at least two interactions, a tenth (rounded down) is chosen by the seed for validation and another
    tenth for testing; all other users are for training. For a held-out user, the last interaction is the target and all
    earlier ones are only shown; for a training user, every interaction is trained on. Splits prescribed by the source
    are ignored.

    Raises:
      DataError: fewer than ten users have two interactions or more.
    """
    lengths = np.diff(corpus.offsets)
    able = np.flatnonzero(lengths >= 2)
    tenth = len(able) // 10
    if not tenth:
        raise DataError(f"{len(able)} users have two or more interactions; a split by users needs at least ten")
    chosen = np.random.default_rng(seed).permutation(able)
    purpose = np.full(corpus.num_users, TRAIN, np.int8)
    purpose[chosen[:tenth]], purpose[chosen[tenth : 2 * tenth]] = VALIDATION, TEST
    splits = np.repeat(np.where(purpose == TRAIN, TRAIN, SHOWN).astype(np.int8), lengths)
    splits[corpus.offsets[1:] - 1] = purpose
    return dataclasses.replace(corpus, splits=splits)


def with_user(corpus: Corpus, user_id: str, items: Sequence[int], ratings: Sequence[float]) -> Corpus:
    """Returns the corpus with one more user at the end, whose interactions are only shown: none is held out or counted.

    Args:
      items: the user's items, oldest first.
      ratings: the rating of each item, NaN if unknown.

    Raises:
      DataError: the user id exists already, or the history is empty.
      ValueError: the number of ratings differs from that of items, or an item is not in the catalogue.
    """
    if user_id in corpus.user_ids:
        raise DataError(f"user {user_id} occurs twice; ids must be unique in a source")
    if not len(items):
        raise DataError(f"user {user_id} has no interactions; a history of at least one item is needed")
    if not all(0 <= item < corpus.num_items for item in items):
        raise ValueError(
            f"items {list(items)}: item numbers must be at least 0 and below {corpus.num_items}, the size of the "
            "catalogue"
        )
    if len(ratings) != len(items):
        raise ValueError(f"{len(ratings)} ratings for {len(items)} items; give one rating for each item")

    def added(array: np.ndarray, values: Sequence[float]) -> np.ndarray:
        return np.concatenate([array, np.array(values, array.dtype)])

    return dataclasses.replace(
        corpus,
        user_ids=[*corpus.user_ids, user_id],
        offsets=added(corpus.offsets, [corpus.offsets[-1] + len(items)]),
        items=added(corpus.items, items),
        times=added(corpus.times, [NO_TIME] * len(items)),
        ratings=added(corpus.ratings, ratings),
        splits=added(corpus.splits, [SHOWN] * len(items)),
    )


def with_items(corpus: Corpus, items: Sequence[Item]) -> Corpus:
    """Returns the corpus with additional items appended, which must have new ids and have no interactions yet."""
    return dataclasses.replace(
        corpus,
        item_ids=[*corpus.item_ids, *(item.item_id for item in items)],
        titles=[*corpus.titles, *(item.title for item in items)],
        attributes=[*corpus.attributes, *(item.attributes for item in items)],
        categories=[*corpus.categories, *(item.categories for item in items)],
    )


def leave_one_out(user: User) -> list[int]:
    """Returns the split of each interaction: the last is the test and the one before it the validation interaction.
    Splits prescribed by the source take precedence. With two interactions there is no validation interaction; with one
    or none, nothing is held out."""
    prescribed = [interaction.split for interaction in user.interactions]
    if any(prescribed):
        splits = [SPLITS.get(split, TRAIN) for split in prescribed]
        if splits != sorted(splits) or splits.count(VALIDATION) > 1 or splits.count(TEST) > 1:
            raise DataError(
                f"user {user.user_id}: prescribed splits must be in the order train, validation, test, with at "
                "most one validation and one test interaction"
            )
        return splits
    splits = [TRAIN] * len(prescribed)
    if len(splits) >= 2:
        splits[-1] = TEST
    if len(splits) >= 3:
        splits[-2] = VALIDATION
    return splits


@dataclasses.dataclass(frozen=True, eq=False)
class UserEvents:
    """One user's interactions, oldest first, with items as indices, as in `Corpus`; texts are keyed by index into
    these."""

    ARRAYS: ClassVar = ("items", "times", "ratings", "splits")

    user_id: str
    items: list[int]
    times: list[int]
    ratings: list[float]
    splits: list[int]
    texts: dict[int, str]


def catalogue_of(items: Iterable[Item]) -> dict[str, int]:
    """Returns the index of each item by its id; raises DataError if an id occurs twice, or there are no items."""
    index: dict[str, int] = {}
    for number, item in enumerate(items):
        if index.setdefault(item.item_id, number) != number:
            raise DataError(f"item {item.item_id} occurs twice; ids must be unique in a source")
    if not index:
        raise DataError("the source has no items")
    return index


def all_events(index: Mapping[str, int], users: Iterable[User]) -> Iterator[UserEvents]:
    """Yields the interactions of every user who has at least one; there is nothing to learn from or to ask about the
    others. Interactions are sorted by time; if times tie, or some times of a user are unknown, the source's order is
    kept. Raises DataError if a history names an unknown item, or no user has an interaction."""
    asked = False
    for user in users:
        if not user.interactions:
            continue
        interactions = user.interactions
        if all(interaction.time != NO_TIME for interaction in interactions):
            interactions = tuple(sorted(interactions, key=lambda interaction: interaction.time))
        for number, interaction in enumerate(interactions):
            if interaction.item_id not in index:
                raise DataError(
                    f"user {user.user_id}, interaction {number}: item {interaction.item_id} is not in the catalogue"
                )
        asked = True
        yield UserEvents(
            user_id=user.user_id,
            items=[index[interaction.item_id] for interaction in interactions],
            times=[interaction.time for interaction in interactions],
            ratings=[interaction.rating for interaction in interactions],
            splits=leave_one_out(dataclasses.replace(user, interactions=interactions)),
            texts={number: interaction.text for number, interaction in enumerate(interactions) if interaction.text},
        )
    if not asked:
        raise DataError("no user in the source has an interaction")


def refuse_repeats(user_ids: Iterable[str]) -> None:
    """Raises DataError if a user id occurs twice."""
    seen: set[str] = set()
    for user_id in user_ids:
        if user_id in seen:
            raise DataError(f"user {user_id} occurs twice; ids must be unique in a source")
        seen.add(user_id)


def build_corpus(items: Iterable[Item], users: Iterable[User]) -> Corpus:
    """Builds the corpus of the given records; raises the same errors as `columns.write_columns`."""
    from data_pipelines.columns import gathered  # which imports this module

    return gathered(items, users)[0]
