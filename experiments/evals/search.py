"""Search: the catalogue ranked for what comes next and fits a query, beside baselines that rank the matches first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.corpus import Corpus
from data_pipelines.tasks import Query
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import Ranker
from experiments.data import ExperimentData
from experiments.evals.config import GenerateConfig
from experiments.evals.ranking import RankingEval
from experiments.request import Request
from unimp_jax.evaluation.predictor import Predictor


class SearchEval(RankingEval):
    """Which item, given its categories as a query, comes next?"""

    task = "search"
    asks = "What comes next, given its categories as a query?"
    needs = ("query", 'the words searched for, such as --query "Comedy, Drama"')

    def rankers(self, corpus: Corpus, rankers: Sequence[Ranker]) -> Sequence[Ranker]:
        def query_of(user: int, position: int) -> Sequence[str]:
            return corpus.categories[int(corpus.items[corpus.offsets[user] + position])]

        return [QueryMatch(ranker, WordMatches(corpus.categories, query_of)) for ranker in rankers]

    def columns(self, corpus: Corpus, queries: Sequence[Query]) -> dict[str, Any]:
        return {"query": [", ".join(corpus.categories[query.right[0]]) for query in queries]}

    def query(self, data: ExperimentData, request: Request, query: Query, item_of: Callable[[str], int]) -> Query:
        return dataclasses.replace(query, words=request.query)

    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        return {"query": query.words} | super().answer(data, predictor, query, config, opened)
