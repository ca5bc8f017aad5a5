"""Selection: which one or two of three items suit the user?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.corpus import SHOWN, VALIDATION
from data_pipelines.tasks.base import Query, Segment, Split, Task, TaskData
from data_pipelines.tasks.texts import PromptTexts
from data_pipelines.vocabulary import NUM_CANDIDATES, Vocabulary

PRIOR = {1: 0.5, 2: 0.5}
"""How often a question has so many right answers, as far as there is a next but one interaction."""
ALL_MET = "who met so much of the catalogue that nothing wrong is left to offer"


class Selection(Task):
    """Three items are shown under names; the answer is the names of those that come next, in ascending order."""

    name = "selection"
    question = "Can you select the suitable item from above for the user?"
    num_right = 2
    num_texts = NUM_CANDIDATES

    def unavailable(self, data: TaskData) -> str:
        num_items = data.corpus.num_items
        return f"it takes {NUM_CANDIDATES} items, and the catalogue has {num_items}" * (num_items < NUM_CANDIDATES)

    def sample(self, data: TaskData, user: int, position: int, last: int, rng: np.random.Generator) -> Query | str:
        event = data.event(user, position)
        both = position < last and rng.random() < PRIOR[2]
        items = data.corpus.items[event : event + 1 + both].tolist()
        right = tuple(dict.fromkeys(items))  # the same item twice in a row is one right answer
        met = data.corpus.history(user, last + 1)  # held-out items are unknown here, so they may be offered as wrong
        offered = draw_candidates(data.corpus.num_items, right, met, rng)
        return Query(self.name, user, position, right, offered) if offered else "selection where nothing is left unmet"

    def held_out(self, data: TaskData, split: Split, user: int, position: int) -> Query | str:
        """Two items are right for every second user of the test split whose last item but one was not to train on (it
        is the validation item, or only shown): that one and the test item, asked of the history before both."""
        corpus, event = data.corpus, data.event(user, position)
        query = Query(self.name, user, position, (int(corpus.items[event]),))
        unknown = corpus.splits[event - 1] in (VALIDATION, SHOWN)
        both = split == "test" and user % 2 == 1 and position >= 2 and unknown
        if both and corpus.items[event - 1] != corpus.items[event]:
            query = Query(self.name, user, position - 1, (int(corpus.items[event - 1]), int(corpus.items[event])))
        rng = np.random.default_rng((user, position))
        offered = draw_candidates(corpus.num_items, query.right, corpus.history(user, position + 1), rng)
        return dataclasses.replace(query, candidates=offered) if offered else ALL_MET

    def texts(self, texts: PromptTexts, query: Query) -> list[np.ndarray]:
        return [texts.attributes[item] for item in query.candidates]

    def prompt(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> list[Segment]:
        offered = zip(query.candidates, shown, texts.vocabulary.selections.tolist(), strict=True)
        return [Segment(texts.select), *(Segment(texts.item(item, text, name), item) for item, text, name in offered)]

    def answer(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> np.ndarray:
        return texts.vocabulary.selections[sorted(query.candidates.index(item) for item in query.right)]

    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray:
        return vocabulary.selections


def draw_candidates(
    num_items: int, right: tuple[int, ...], met: np.ndarray, rng: np.random.Generator
) -> tuple[int, ...] | None:
    """The right items among others that are not in `met`, three in random order; None where so much of the catalogue
    was met that nothing wrong is left to offer."""
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
