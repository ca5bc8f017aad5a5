"""The search task: ranks the catalogue by what comes next and matches a query, as asked and by Bayes' rule.

The words of a query are the categories of the target item. By Bayes' rule, the probability of an item is proportional
to its next-item probability if its categories are those words, and 0 otherwise. If no item has exactly these, those
that have most of them come first (`WordMatches`). Our recommendations and the baselines' are both ranked in this way.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks import Query
from experiments.baselines.bm25 import BM25
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import Ranker
from experiments.data import ExperimentData
from experiments.evals.base import OURS, Answered, Setting
from experiments.evals.config import GenerateConfig
from experiments.evals.ranking import RankingEval, best_items, best_of
from experiments.evals.recommender import recommender, remembers
from experiments.evals.text_search import text_search_table
from experiments.request import Request
from unimp_jax.evaluation.predictor import Predictor

BY_RULE = f"{OURS} + query"


class SearchEval(RankingEval):
    """The search task: which item comes next, given its categories as a query?"""

    task = "search"
    asks = "What comes next, given its categories as a query?"
    needs = ("query", 'the words to search for, such as --query "Comedy, Drama"')

    def evaluate(self, setting: Setting) -> Answered:
        if not remembers(setting.data):
            return super().evaluate(setting)
        rankers = [setting.next_item, *setting.rankers]
        outcome, _ = self.rank(dataclasses.replace(setting, rankers=rankers))
        note = (
            f"{outcome.note} {BY_RULE}: by Bayes' rule from next-item probabilities; {OURS}: by the answer to the "
            "question."
        )
        tables = {self.task: dataclasses.replace(outcome, note=note)}
        return Answered(tables | text_search_table(dataclasses.replace(setting, rankers=rankers)))

    def rankers(self, corpus: Corpus, rankers: Sequence[Ranker]) -> Sequence[Ranker]:
        return [QueryMatch(ranker, WordMatches(corpus.categories, query_of(corpus))) for ranker in rankers]

    def quality(self, corpus: Corpus, users: np.ndarray, positions: np.ndarray) -> Callable[[np.ndarray], float]:
        """NDCG@50 among the items that match the query as well as the target, seen items filtered."""
        matches_MI = WordMatches(corpus.categories, query_of(corpus))(users, positions)
        best_MI = matches_MI == np.take_along_axis(matches_MI, corpus.targets(users, positions)[:, None], axis=1)
        ndcg = super().quality(corpus, users, positions)
        return lambda log_p_MI: ndcg(np.where(best_MI, log_p_MI, -np.inf))

    def columns(self, corpus: Corpus, queries: Sequence[Query]) -> dict[str, Any]:
        return {"query": [", ".join(corpus.categories[query.right[0]]) for query in queries]}

    def query(self, data: ExperimentData, request: Request, query: Query, item_of: Callable[[str], int]) -> Query:
        return dataclasses.replace(query, words=request.query)

    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        found = by_rule(data, predictor, query, config) if remembers(data) else None
        return {"query": query.words} | (found or {"items": best_items(data, predictor, query, config)})


def query_of(corpus: Corpus) -> Callable[[int, int], Sequence[str]]:
    """Returns a function from (user, position) of a held-out interaction to the query: the categories of its item."""
    return lambda user, position: corpus.categories[int(corpus.items[corpus.offsets[user] + position])]


def by_rule(data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig) -> dict[str, Any] | None:
    """Returns the items that match the query's categories best, ties by next-item probability and by BM25 of the words
    that are no categories, beside which an item may have other categories; None if no item has any of the words."""
    corpus, words = data.corpus, data.vocabulary.split_query(query.words or "")
    users, positions = np.array([query.user]), np.array([query.position])
    known = {category.casefold() for categories in corpus.categories for category in categories}
    free = " ".join(word for word in words if word.casefold() not in known)
    matches = WordMatches(corpus.categories, lambda *_: words)
    matches_I = (matches.counts if free else matches)(users, positions)[0]
    bm25_I = BM25(corpus, lambda *_: free).scores(users, positions)[0] if free else np.zeros(corpus.num_items)
    if not (matches_I > 0).any() and not bm25_I.any():
        return None
    log_p_I = recommender(data, predictor, "search").scores(users, positions)[0]
    order_I = np.lexsort((-log_p_I - bm25_I, -matches_I))
    return {"items": best_of(corpus, query, order_I, log_p_I, config)}
