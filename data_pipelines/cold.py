"""Cold items: a fraction of a catalogue that is held out of training and only used in evaluation."""

import dataclasses

import numpy as np

from data_pipelines.corpus import SPLITS, Corpus
from data_pipelines.tasks.base import Split


def choose_cold(num_items: int, share: float, seed: int) -> np.ndarray:
    """Returns which items are cold: bool [I]; a fraction `share` of all, at least one item and not all."""
    count = min(max(round(share * num_items), 1), num_items - 1)
    return np.isin(np.arange(num_items), np.random.default_rng(seed).permutation(num_items)[:count])


def without_cold(corpus: Corpus, is_cold: np.ndarray, asked: Split | None = None) -> tuple[Corpus, np.ndarray]:
    """Returns the corpus without its cold items, and the original indices of its items, int64 [n].

    Args:
      is_cold: bool [I].
      asked: a split to evaluate on: its held-out interactions with cold items are kept, and the cold items come after
        the others. None removes cold items from both the catalogue and the histories.
    """
    events = ~is_cold[corpus.items]
    if asked is None:
        items = np.flatnonzero(~is_cold)
    else:
        items, events = np.argsort(is_cold, kind="stable"), events | (corpus.splits == SPLITS[asked])
    return selected(corpus, items, events), items


def selected(corpus: Corpus, items: np.ndarray, events: np.ndarray) -> Corpus:
    """Returns the corpus with some of its items and interactions; users without interactions are left out.

    Args:
      items: int64 [n], the selected items in their new order.
      events: bool [E], the selected interactions, all of which have selected items.
    """
    place = np.full(corpus.num_items, -1)
    place[items] = np.arange(len(items))
    users = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))[events]
    counts = np.bincount(users, minlength=corpus.num_users)
    number = np.cumsum(events) - 1
    return dataclasses.replace(
        corpus,
        item_ids=[corpus.item_ids[item] for item in items],
        titles=[corpus.titles[item] for item in items],
        attributes=[corpus.attributes[item] for item in items],
        categories=[corpus.categories[item] for item in items],
        user_ids=[corpus.user_ids[user] for user in np.flatnonzero(counts).tolist()],
        offsets=np.concatenate([[0], np.cumsum(counts[counts > 0])]),
        items=place[corpus.items[events]].astype(np.int32),
        times=corpus.times[events],
        ratings=corpus.ratings[events],
        splits=corpus.splits[events],
        texts={int(number[event]): text for event, text in corpus.texts.items() if events[event]},
    )
