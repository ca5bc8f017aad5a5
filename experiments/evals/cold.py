"""Tables of recommendation for items that training never or rarely saw, in runs with `data.cold_items`."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.content import training_counts
from data_pipelines.tasks import Query
from data_pipelines.tasks.queries import held_out_queries
from experiments.baselines.item_knn import ContentKNN, choose_content_knn
from experiments.baselines.ranker import Popularity, Ranker, rank_in_batches
from experiments.data import ExperimentData, load_records
from experiments.evals.base import OURS, Outcome, PerUser, Setting, moments, question_columns
from experiments.evals.queries import EvaluationQueries, evenly_spaced
from experiments.evals.ranking import rank_catalogue
from unimp_jax.evaluation.metrics import ranking_metrics
from unimp_jax.evaluation.predictor import Predictor

SPARSE = 3
"""Items with one to this many training interactions are sparse."""


def cold_tables(setting: Setting) -> dict[str, Outcome]:
    """Returns the table of users whose held-out item is cold, beside popularity and content-kNN, and that of users
    whose item is sparse, beside all baselines. Tables without users are omitted, and both if no item is cold."""
    data, config = setting.data, setting.config
    if not data.config.data.cold_items:
        return {}
    chosen = choose_content_knn(data.corpus, data.features)
    tables = {}

    extended = data.with_items(load_records(data.config.data, config.split))
    is_cold = np.arange(extended.corpus.num_items) >= data.corpus.num_items
    everybody = held_out_queries(extended.corpus, config.split, "recommendation")
    everybody = [query for query in everybody if is_cold[query.right[0]]]
    asked = EvaluationQueries(evenly_spaced(everybody, config.users), {}, len(everybody))
    if asked.queries:
        rankers = Popularity(extended.corpus), ContentKNN(extended.corpus, extended.features, chosen.decay)
        note = (
            f"What comes next? The answer is one of {is_cold.sum():,} items without training interactions.{asked.note}"
        )
        model = setting.with_content(extended.content)
        tables["cold-items"] = table(note, extended, model, rankers, asked.queries, is_cold)

    counts = training_counts(data.corpus)
    is_sparse = (counts >= 1) & (counts <= SPARSE)
    queries = [query for query in setting.questions.queries if is_sparse[query.right[0]]]
    if queries:
        note = (
            f"What comes next? The answer is one of {is_sparse.sum():,} items with one to {SPARSE} training "
            f"interactions.{setting.questions.note}"
        )
        known = [*setting.rankers, chosen]
        tables["sparse-items"] = table(note, data, setting.predictor, known, queries, is_sparse)
    return tables


def table(
    note: str, data: ExperimentData, predictor: Predictor, rankers: Sequence[Ranker], queries: Sequence[Query],
    members: np.ndarray,
) -> Outcome:  # fmt: skip
    """Ranks the target item among all items, and among those of the group that it belongs to.

    Args:
      members: bool [I], the items of the group.
    """
    targets, outside = np.array([query.right[0] for query in queries], np.int32), np.flatnonzero(~members)
    ranks = {OURS: [rank_catalogue(data, predictor, queries, outside=hidden).filtered for hidden in (None, outside)]}
    for ranker in rankers:
        ranks[ranker.name] = [
            rank_in_batches(ranker, data.corpus, *moments(queries), targets, outside=hidden)[1]
            for hidden in (None, outside)
        ]
    answers = question_columns(data.corpus, queries)
    for name, (whole, group) in ranks.items():
        answers |= {f"{name}: rank, filtered": whole, f"{name}: rank among them": group}
    note += " Seen items filtered; ranked among all items and, in the last columns, among the items of this group only."
    return Outcome(note, {name: metrics(*both) for name, both in ranks.items()}, answers)


def metrics(whole: np.ndarray, group: np.ndarray) -> PerUser:
    """Returns HR@10 and NDCG@10 of both ranks."""
    both = {"": ranking_metrics(whole, (10,)), " (among them)": ranking_metrics(group, (10,))}
    return {f"{name}{where}": found[name] for where, found in both.items() for name in ("HR@10", "NDCG@10")}
