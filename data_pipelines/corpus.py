"""All interactions of a source as flat arrays: who met what, when, and which of it is held out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME, Interaction, Item, User

TRAIN, VALIDATION, TEST, SHOWN = 0, 1, 2, 3
"""What an interaction is for; those only shown, in the history of what is asked, are neither learnt nor asked about."""
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """U users' E interactions with I items, a user's interactions next to one another, oldest first.

    An item is its index from here on. A user's held-out interactions come after all those to train on or to show, the
    validation one before the test one, so that "everything before position p" never shows a later answer.

    Attributes:
      item_ids, titles: I strings.
      attributes: for each item, (name, text) pairs.
      categories: for each item, the words to search it by.
      user_ids: U strings.
      offsets: int64 [U + 1]; user u has interactions offsets[u] to offsets[u + 1].
      items: int32 [E].
      times: int64 [E], seconds since 1970, -1 where unknown.
      ratings: float32 [E], NaN where unknown.
      splits: int8 [E], TRAIN, VALIDATION, TEST or SHOWN.
      texts: what was written, by index into the E interactions.
    """

    item_ids: list[str]
    titles: list[str]
    attributes: list[tuple[tuple[str, str], ...]]
    categories: list[tuple[str, ...]]
    user_ids: list[str]
    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    splits: np.ndarray
    texts: dict[int, str]

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @functools.cached_property
    def has_categories(self) -> np.ndarray:
        """The items that have categories to search them by: bool [I]."""
        return np.fromiter(map(bool, self.categories), bool, self.num_items)

    @functools.cached_property
    def rating_levels(self) -> list[float]:
        """The distinct ratings of the training interactions, ascending; empty where the source has none."""
        ratings = self.ratings[self.splits == TRAIN]
        return [float(level) for level in np.unique(ratings[~np.isnan(ratings)])]

    def history(self, user: int, position: int) -> np.ndarray:
        """The items the user met before their `position`-th interaction, oldest first: int32 [position]."""
        start = self.offsets[user]
        return self.items[start : start + position]

    def held_out(self, split: int) -> tuple[np.ndarray, np.ndarray]:
        """(users, positions), int32 [M] each: one pair for every user whose history has a `split` interaction.

        `items[offsets[user] + position]` is the answer, all before it the history. Users whose answer would stand
        first, with no history, are left out: nothing could be asked about them.
        """
        events = np.flatnonzero(self.splits == split)
        users = np.searchsorted(self.offsets, events, side="right") - 1
        positions = events - self.offsets[users]
        asked = positions > 0
        return users[asked].astype(np.int32), positions[asked].astype(np.int32)

    def targets(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The items that were met at `positions`: int32 [M]."""
        return self.items[self.offsets[users] + positions]


def split_by_users(corpus: Corpus, seed: int) -> Corpus:
    """The corpus with other users to train on than to ask: of those with two interactions or more, a tenth (rounded
    down) for validation and as many for test, chosen by the seed, and everybody else to train on.

    Of somebody held out, the last interaction is asked about and all before it are shown; of the others every one is to
    train on, whatever the source prescribes.

    Raises:
      DataError: there are fewer than ten such users.
    """
    lengths = np.diff(corpus.offsets)
    able = np.flatnonzero(lengths >= 2)
    tenth = len(able) // 10
    if not tenth:
        raise DataError(f"{len(able)} users have two interactions or more: a split by users needs ten")
    chosen = np.random.default_rng(seed).permutation(able)
    purpose = np.full(corpus.num_users, TRAIN, np.int8)
    purpose[chosen[:tenth]], purpose[chosen[tenth : 2 * tenth]] = VALIDATION, TEST
    splits = np.repeat(np.where(purpose == TRAIN, TRAIN, SHOWN).astype(np.int8), lengths)
    splits[corpus.offsets[1:] - 1] = purpose
    return dataclasses.replace(corpus, splits=splits)


def with_user(corpus: Corpus, user_id: str, items: Sequence[int], ratings: Sequence[float]) -> Corpus:
    """The corpus with one user more, the last, of whose history nothing is held out.

    Args:
      items: what they met, oldest first.
      ratings: of each, NaN where unknown.

    Raises:
      DataError: there is such a user already, or nothing that they met.
      ValueError: not one rating for each item, or an item that is not in the catalogue.
    """
    if user_id in corpus.user_ids:
        raise DataError(f"user {user_id} occurs twice; ids must be unique in a source")
    if not len(items):
        raise DataError(f"user {user_id} has met nothing: a history of one item or more is needed")
    if not all(0 <= item < corpus.num_items for item in items):
        raise ValueError(f"items {list(items)} are not all among the {corpus.num_items} of the catalogue")
    if len(ratings) != len(items):
        raise ValueError(f"{len(ratings)} ratings of {len(items)} items: one for each is right")

    def added(array: np.ndarray, values: Sequence[float]) -> np.ndarray:
        return np.concatenate([array, np.array(values, array.dtype)])

    return dataclasses.replace(
        corpus,
        user_ids=[*corpus.user_ids, user_id],
        offsets=added(corpus.offsets, [corpus.offsets[-1] + len(items)]),
        items=added(corpus.items, items),
        times=added(corpus.times, [NO_TIME] * len(items)),
        ratings=added(corpus.ratings, ratings),
        splits=added(corpus.splits, [TRAIN] * len(items)),
    )


def with_items(corpus: Corpus, items: Sequence[Item]) -> Corpus:
    """The corpus with more items behind its own, of other ids, which nobody has met."""
    return dataclasses.replace(
        corpus,
        item_ids=[*corpus.item_ids, *(item.item_id for item in items)],
        titles=[*corpus.titles, *(item.title for item in items)],
        attributes=[*corpus.attributes, *(item.attributes for item in items)],
        categories=[*corpus.categories, *(item.categories for item in items)],
    )


def leave_one_out(user: User) -> list[int]:
    """The split of each interaction: the last is the test, the one before it the validation, as long as one is left.

    A split that the source prescribes stands. With two interactions the last is the test and there is no validation;
    with one or none, nothing is held out.
    """
    prescribed = [interaction.split for interaction in user.interactions]
    if any(prescribed):
        splits = [SPLITS.get(split, TRAIN) for split in prescribed]
        if splits != sorted(splits) or splits.count(VALIDATION) > 1 or splits.count(TEST) > 1:
            raise DataError(
                f"user {user.user_id}: prescribed splits must run train…, validation, test, each held-out one once"
            )
        return splits
    splits = [TRAIN] * len(prescribed)
    if len(splits) >= 2:
        splits[-1] = TEST
    if len(splits) >= 3:
        splits[-2] = VALIDATION
    return splits


def _oldest_first(interactions: tuple[Interaction, ...]) -> tuple[Interaction, ...]:
    """In order of time, ties as they stand; where one has no time, all as they stand."""
    if any(interaction.time == NO_TIME for interaction in interactions):
        return interactions
    return tuple(sorted(interactions, key=lambda interaction: interaction.time))


def build_corpus(items: Iterable[Item], users: Iterable[User]) -> Corpus:
    """Gathers records into arrays.

    Interactions are put in order of time; where times tie, or a user's are not all known, the source's order stands.
    Users without a single interaction are kept out, for there is nothing to learn from or ask about them.

    Raises:
      DataError: an item or user id occurs twice, or a history names an item that does not exist.
    """
    index: dict[str, int] = {}
    titles: list[str] = []
    attributes: list[tuple[tuple[str, str], ...]] = []
    categories: list[tuple[str, ...]] = []
    for item in items:
        if index.setdefault(item.item_id, len(index)) != len(titles):
            raise DataError(f"item {item.item_id} occurs twice; ids must be unique in a source")
        titles.append(item.title)
        attributes.append(item.attributes)
        categories.append(item.categories)
    if not index:
        raise DataError("the source has no items")

    user_ids: list[str] = []
    offsets, splits = [0], list[int]()
    events: list[tuple[int, int, float]] = []
    texts: dict[int, str] = {}
    seen_users: set[str] = set()
    for user in users:
        if user.user_id in seen_users:
            raise DataError(f"user {user.user_id} occurs twice; ids must be unique in a source")
        seen_users.add(user.user_id)
        if not user.interactions:
            continue
        interactions = _oldest_first(user.interactions)
        for number, interaction in enumerate(interactions):
            if interaction.item_id not in index:
                raise DataError(
                    f"user {user.user_id}, interaction {number}: item {interaction.item_id} is not in the catalogue"
                )
            if interaction.text:
                texts[len(events)] = interaction.text
            events.append((index[interaction.item_id], interaction.time, interaction.rating))
        splits += leave_one_out(dataclasses.replace(user, interactions=interactions))
        offsets.append(len(events))
        user_ids.append(user.user_id)
    if not user_ids:
        raise DataError("the source has no user with an interaction")

    met, times, ratings = zip(*events, strict=True)
    return Corpus(
        item_ids=list(index),
        titles=titles,
        attributes=attributes,
        categories=categories,
        user_ids=user_ids,
        offsets=np.array(offsets, np.int64),
        items=np.array(met, np.int32),
        times=np.array(times, np.int64),
        ratings=np.array(ratings, np.float32),
        splits=np.array(splits, np.int8),
        texts=texts,
    )
