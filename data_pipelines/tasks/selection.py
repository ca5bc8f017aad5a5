"""Selection: find the one or two of three items that suit the user."""

import dataclasses

import numpy as np

from data_pipelines.corpus import SHOWN, VALIDATION, Corpus
from data_pipelines.tasks.base import Split, Task, TaskData
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.texts import Part, PromptTexts
from data_pipelines.vocabulary import NUM_CANDIDATES, Vocabulary

PRIOR = {1: 0.5, 2: 0.5}
"""The probability of each number of right answers, provided that there are two further training interactions."""
ALL_MET = "who interacted with so many items that too few wrong candidates are left"


class Selection(Task):
    """Three items are shown under names; the answer is the names of those that come next, in ascending order."""

    name = "selection"
    question = "Can you select the suitable item from above for the user?"
    num_right = 2
    num_texts = NUM_CANDIDATES
    unasked = "selection where nothing is left unmet"

    def unavailable(self, data: TaskData) -> str:
        num_items = data.corpus.num_items
        return f"it needs {NUM_CANDIDATES} items, but the catalogue has {num_items}" * (num_items < NUM_CANDIDATES)

    def sample(
        self, data: TaskData, asked: Queries, last: np.ndarray, rng: np.random.Generator
    ) -> tuple[Queries, np.ndarray]:
        corpus, events = data.corpus, data.events(asked.users, asked.positions)
        both = (rng.random(len(asked)) < PRIOR[2]) & (asked.positions < last)
        following = corpus.items[events + both]
        right = asked.right.copy()
        right[:, 1] = np.where(following == right[:, 0], -1, following)  # repeated items count once
        # Held-out items are unknown in training, so they may be drawn as wrong candidates.
        candidates = draw_all_candidates(corpus, right, asked.users, last + 1, rng)
        return dataclasses.replace(asked, right=right, candidates=candidates), candidates[:, 0] >= 0

    def held_out(self, data: TaskData, split: Split, user: int, position: int) -> Query | str:
        """Returns the held-out question, with two right items for every second user of the test split if possible.

        The two are the test item and the one before it, which must not be a training item (it is the validation item,
        or only shown); the question is then asked with the history before both.
        """
        corpus, event = data.corpus, int(data.corpus.offsets[user]) + position
        query = Query(self.name, user, position, (int(corpus.items[event]),))
        unknown = corpus.splits[event - 1] in (VALIDATION, SHOWN)
        both = split == "test" and user % 2 == 1 and position >= 2 and unknown
        if both and corpus.items[event - 1] != corpus.items[event]:
            query = Query(self.name, user, position - 1, (int(corpus.items[event - 1]), int(corpus.items[event])))
        met = corpus.history(user, position + 1)
        offered = draw_candidates(corpus.num_items, query.right, met, rng_of(user, position))
        return dataclasses.replace(query, candidates=offered) if offered else ALL_MET

    def prompt(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        offered = enumerate(asked.candidates.T)
        items = [part for place, items in offered for part in texts.item(items, Part(texts.selections, place))]
        return [Part(texts.select, 0), *items]

    def answer(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        is_right = (asked.candidates[:, :, None] == asked.right[:, None, :]).any(axis=2) & (asked.candidates >= 0)
        return [Part(texts.selections, np.where(right, place, -1)) for place, right in enumerate(is_right.T)]

    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray:
        return vocabulary.selections


def rng_of(user: int, position: int) -> np.random.Generator:
    """Returns the generator for the candidates of a held-out question, seeded so that they are always the same."""
    return np.random.default_rng((user, position))


def draw_candidates(
    num_items: int, right: tuple[int, ...], met: np.ndarray, rng: np.random.Generator
) -> tuple[int, ...] | None:
    """Returns the right items and others that are not in `met`, three in random order.

    Returns None if too few items are left that are not in `met`.
    """
    offered = list(dict.fromkeys(right))
    refused = {*met.tolist(), *offered}
    if num_items - len(refused) < NUM_CANDIDATES - len(offered):
        return None
    while len(offered) < NUM_CANDIDATES:
        item = int(rng.integers(num_items))
        if item not in refused:
            offered.append(item)
            refused.add(item)
    return tuple(offered[place] for place in rng.permutation(NUM_CANDIDATES))


def draw_all_candidates(
    corpus: Corpus, right: np.ndarray, users: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws candidates for many questions at once, as `draw_candidates` does: int64 [n, 3]; all -1 if too few items are
    left. For each question four items are drawn and the first admissible ones used, which suffices unless the user has
    interacted with much of the catalogue. `right`, int [n, 2], is padded with -1; `lengths`, int [n], are those of the
    users' histories whose items are not offered."""
    drawn = rng.integers(corpus.num_items, size=(len(users), 4))
    starts = np.cumsum(lengths) - lengths
    events = np.arange(lengths.sum()) + np.repeat(corpus.offsets[users] - starts, lengths)
    met = corpus.items[events, None] == np.repeat(drawn, lengths, axis=0)
    refused = np.logical_or.reduceat(met, starts, axis=0) | (drawn[:, :, None] == right[:, None]).any(axis=2)
    for place in range(1, drawn.shape[1]):
        refused[:, place] |= (drawn[:, :place] == drawn[:, place, None]).any(axis=1)
    offered = np.concatenate([right, np.where(refused, -1, drawn)], axis=1)
    first = np.argsort(offered < 0, axis=1, kind="stable")[:, :NUM_CANDIDATES]
    candidates = rng.permuted(np.take_along_axis(offered, first, axis=1), axis=1)
    for row in np.flatnonzero((candidates < 0).any(axis=1)):
        known = tuple(item for item in right[row].tolist() if item >= 0)
        candidates[row] = draw_candidates(corpus.num_items, known, corpus.history(users[row], lengths[row]), rng) or -1
    return candidates
