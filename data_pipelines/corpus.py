"""All interactions of a source as flat arrays: who met what, when, and which of it is held out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

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
      texts: what was written, by index into the E interactions, in their order.
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
        """The items that have categories to search them by: bool [I]."""
        return np.fromiter(map(bool, self.categories), bool, self.num_items)

    @functools.cached_property
    def text_events(self) -> np.ndarray:
        """The interactions with texts, ascending: int64 [len(texts)]."""
        events = getattr(self.texts, "events", None)
        return np.fromiter(self.texts, np.int64, len(self.texts)) if events is None else events

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


@dataclasses.dataclass(frozen=True, eq=False)
class UserEvents:
    """One user's interactions, oldest first, by the numbers of their items; see `Corpus`.

    Attributes:
      texts: what was written, by index into these interactions.
    """

    ARRAYS: ClassVar = ("items", "times", "ratings", "splits")

    user_id: str
    items: list[int]
    times: list[int]
    ratings: list[float]
    splits: list[int]
    texts: dict[int, str]


def catalogue_of(items: Iterable[Item]) -> dict[str, int]:
    """The number of each item by its id.

    Raises:
      DataError: an id occurs twice, or there is no item.
    """
    index: dict[str, int] = {}
    for number, item in enumerate(items):
        if index.setdefault(item.item_id, number) != number:
            raise DataError(f"item {item.item_id} occurs twice; ids must be unique in a source")
    if not index:
        raise DataError("the source has no items")
    return index


def all_events(index: Mapping[str, int], users: Iterable[User]) -> Iterator[UserEvents]:
    """Every user who has an interaction.

    Interactions are put in order of time; where times tie, or a user's are not all known, the source's order stands.
    Users without a single interaction are kept out, for there is nothing to learn from or ask about them.

    Raises:
      DataError: a history names an item that does not exist, or nobody has an interaction.
    """
    asked = False
    for user in users:
        if not user.interactions:
            continue
        interactions = _oldest_first(user.interactions)
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
        raise DataError("the source has no user with an interaction")


def refuse_repeats(user_ids: Iterable[str]) -> None:
    """
    Raises:
      DataError: one occurs twice.
    """
    seen: set[str] = set()
    for user_id in user_ids:
        if user_id in seen:
            raise DataError(f"user {user_id} occurs twice; ids must be unique in a source")
        seen.add(user_id)


def build_corpus(items: Iterable[Item], users: Iterable[User]) -> Corpus:
    """Gathers records into arrays.

    Raises:
      DataError: as of `catalogue_of`, `all_events` and `refuse_repeats`.
    """
    titles: list[str] = []
    attributes: list[tuple[tuple[str, str], ...]] = []
    categories: list[tuple[str, ...]] = []

    def described() -> Iterator[Item]:
        for item in items:
            titles.append(item.title)
            attributes.append(item.attributes)
            categories.append(item.categories)
            yield item

    index = catalogue_of(described())
    events = [*all_events(index, users)]
    refuse_repeats(one.user_id for one in events)
    offsets = np.cumsum([0, *(len(one.items) for one in events)])
    texts = {
        int(start) + number: text
        for start, one in zip(offsets, events, strict=False)
        for number, text in one.texts.items()
    }

    def joined(name: str, dtype: type[np.generic]) -> np.ndarray:
        return np.fromiter(itertools.chain.from_iterable(getattr(one, name) for one in events), dtype, offsets[-1])

    return Corpus(
        item_ids=list(index),
        titles=titles,
        attributes=attributes,
        categories=categories,
        user_ids=[one.user_id for one in events],
        offsets=offsets.astype(np.int64),
        items=joined("items", np.int32),
        times=joined("times", np.int64),
        ratings=joined("ratings", np.float32),
        splits=joined("splits", np.int8),
        texts=texts,
    )
