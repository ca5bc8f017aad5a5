"""Cold items: a share of a catalogue that training never meets, and that is only asked about."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.corpus import SPLITS, Corpus
from data_pipelines.tasks.base import Split


def choose_cold(num_items: int, share: float, seed: int) -> np.ndarray:
    """bool [I]: which items are cold, a share of all, at least one and not all."""
    count = min(max(round(share * num_items), 1), num_items - 1)
    return np.isin(np.arange(num_items), np.random.default_rng(seed).permutation(num_items)[:count])


def without_cold(corpus: Corpus, is_cold: np.ndarray, asked: Split | None = None) -> tuple[Corpus, np.ndarray]:
    """(the corpus as training sees it, which items it has, int64 [n]): as if cold items had never been.

    Args:
      is_cold: bool [I].
      asked: cold items stand behind the others, and what this split holds out of them is there; None: they are in
        neither catalogue nor histories.
    """
    events = ~is_cold[corpus.items]
    if asked is None:
        items = np.flatnonzero(~is_cold)
    else:
        items, events = np.argsort(is_cold, kind="stable"), events | (corpus.splits == SPLITS[asked])
    return selected(corpus, items, events), items


def selected(corpus: Corpus, items: np.ndarray, events: np.ndarray) -> Corpus:
    """The corpus with some of its items and interactions; users without any are left out.

    Args:
      items: int64 [n], which items, in their new order.
      events: bool [E], which interactions, all of them with such items.
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
