"""Ranks the catalogue after a prompt: the common part of recommendation and search.

If each item has a token of its own, the whole catalogue is ranked exactly by the next token's probability; semantic ids
are found by beam search.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks import Query
from experiments.baselines.ranker import Ranker, rank_in_batches
from experiments.data import ExperimentData
from experiments.evals.base import (
    OURS,
    Answered,
    Outcome,
    PerUser,
    Setting,
    TaskEval,
    moments,
    prompt_batches,
    question_columns,
    refuse_nan,
    titled,
)
from experiments.evals.config import GenerateConfig
from experiments.evals.recommender import recommender
from experiments.terminal import columns, fitted, padded, terminal_width
from unimp_jax.evaluation.metrics import ranking_metrics
from unimp_jax.evaluation.predictor import Predictor, Seen
from unimp_jax.evaluation.ranking import Ranked, ranks, seen_bitmap


class RankingEval(TaskEval):
    """Ranks the catalogue; baselines rank it as well."""

    needs_rankers = True
    asks: str
    """A sentence for a table that says what is asked."""

    def rankers(self, corpus: Corpus, rankers: Sequence[Ranker]) -> Sequence[Ranker]:
        """Returns the baselines adapted to this task."""
        return rankers

    def columns(self, corpus: Corpus, queries: Sequence[Query]) -> dict[str, Any]:
        """Returns additional columns about the queries."""
        return {}

    def quality(self, corpus: Corpus, users: np.ndarray, positions: np.ndarray) -> Callable[[np.ndarray], float]:
        """NDCG@50, seen items filtered, because NDCG@10 is less reliable with a few hundred users."""
        pairs = zip(users.tolist(), positions.tolist(), strict=True)
        seen_Mw = seen_bitmap([corpus.history(*pair) for pair in pairs], corpus.num_items)
        targets_M = corpus.targets(users, positions)

        def ndcg(log_p_MI: np.ndarray) -> float:
            _, filtered = jax.device_get(ranks(log_p_MI, targets_M, seen_Mw))
            return float(ranking_metrics(filtered, (50,))["NDCG@50"].mean())

        return ndcg

    def evaluate(self, setting: Setting) -> Answered:
        return Answered({self.task: self.rank(setting)[0]})

    def rank(self, setting: Setting) -> tuple[Outcome, Ranked]:
        """Returns (the table, our ranking)."""
        data, queries, beams = setting.data, setting.questions.queries, setting.config.beams
        corpus = data.corpus
        ranked = rank_catalogue(data, setting.predictor, queries, beams=beams)
        metrics = {OURS: rank_metrics(ranked.unfiltered, ranked.filtered)}
        answers = question_columns(corpus, queries) | {
            "items": [[corpus.item_ids[item] for item in row if item >= 0] for row in ranked.top],
            "scores": [[score for score in row if np.isfinite(score)] for row in ranked.scores.tolist()],
            "cross entropy": ranked.cross_entropy,
            f"{OURS}: rank, unfiltered": ranked.unfiltered,
            f"{OURS}: rank, filtered": ranked.filtered,
        }
        targets = np.array([query.right[0] for query in queries], np.int32)
        for ranker in self.rankers(corpus, setting.rankers):
            unfiltered, filtered = rank_in_batches(ranker, corpus, *moments(queries), targets)
            metrics[ranker.name] = rank_metrics(unfiltered, filtered)
            answers |= {f"{ranker.name}: rank, unfiltered": unfiltered, f"{ranker.name}: rank, filtered": filtered}
        search_note = "" if data.vocabulary.depth == 1 else f" Semantic ids, found by beam search with {beams} beams."
        items = setting.memory.items.get(self.task)
        memory_note = f" Memory: {items.described}." if items else ""
        notes = search_note + setting.questions.note + memory_note
        note = f"{self.asks} Seen items are filtered, except in the last columns.{notes}"
        return Outcome(note, metrics, answers | self.columns(corpus, queries)), ranked

    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        """Returns the best items with their probabilities, by the task's memory or else by the model's answer."""
        if query.task not in data.memory.items:
            return {"items": best_items(data, predictor, query, config)}
        log_p_I = recommender(data, predictor, query.task).scores(*moments([query]))[0]
        return {"items": best_of(data.corpus, query, np.argsort(-log_p_I, kind="stable"), log_p_I, config)}

    def show(self, answer: dict[str, Any]) -> list[str]:
        return show_items(answer["items"])


def rank_metrics(unfiltered: np.ndarray, filtered: np.ndarray) -> PerUser:
    """Returns all metrics of ranks with seen items filtered, then unfiltered."""
    without_filter = ranking_metrics(unfiltered, (10,)).items()
    return ranking_metrics(filtered) | {f"{name} (unfiltered)": values for name, values in without_filter}


def seen_items(corpus: Corpus, queries: Sequence[Query], outside: np.ndarray | None = None) -> Seen:
    """Returns a function from a query's index to the items of its history and those `outside`."""

    def seen(number: int) -> np.ndarray:
        history = corpus.history(queries[number].user, queries[number].position)
        return history if outside is None else np.concatenate([history, outside])

    return seen


def rank_catalogue(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], k: int = 10, beams: int = 20,
    outside: np.ndarray | None = None,
) -> Ranked:  # fmt: skip
    """Returns the best items for each query and the ranks of the target items; the items `outside`, int [n], are
    filtered as if they were in the history."""
    targets = np.array([query.right[0] for query in queries], np.int32)
    seen, items = seen_items(data.corpus, queries, outside), data.vocabulary.items
    if data.vocabulary.depth == 1:
        batches = prompt_batches(data, predictor, queries)
        return predictor.rank(batches, item_tokens=items[:, 0], targets=targets, seen=seen, k=k)
    batches = prompt_batches(data, predictor, queries, tight=True)
    return predictor.search(batches, trie=data.trie, item_tokens=items, targets=targets, seen=seen, k=k, beams=beams)


def best_items(
    data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig
) -> list[dict[str, Any]]:
    """Returns the best items for an open query by the model alone, without a target item."""
    nothing, beams = np.empty(0, np.int32), max(config.beams, config.k)
    seen = (lambda _: nothing) if config.unfiltered else seen_items(data.corpus, [query])
    batches = prompt_batches(data, predictor, [query], tight=True)
    items, scores = predictor.best_items(batches, 1, trie=data.trie, excluded=seen, k=config.k, beams=beams)
    refuse_nan(scores)
    found = items[0] >= 0
    return named(data.corpus, items[0][found], scores[0][found])


def best_of(
    corpus: Corpus, query: Query, order_I: np.ndarray, log_p_I: np.ndarray, config: GenerateConfig
) -> list[dict[str, Any]]:
    """Returns the first items of an order, without those of the history unless `unfiltered` is set."""
    seen = () if config.unfiltered else corpus.history(query.user, query.position)
    best = order_I[~np.isin(order_I, seen)][: config.k]
    return named(corpus, best, log_p_I[best])


def named(corpus: Corpus, items: np.ndarray, log_p: np.ndarray) -> list[dict[str, Any]]:
    """Returns items, best first, with their probabilities."""
    titles = titled(corpus, items.tolist())
    return [
        {"rank": rank, **title, "probability": probability}
        for rank, (title, probability) in enumerate(zip(titles, np.exp(log_p).tolist(), strict=True), start=1)
    ]


def show_items(items: list[dict[str, Any]]) -> list[str]:
    """Formats items as a table."""
    if not items:
        return [
            "no item is left to recommend, because the history contains the whole catalogue (--unfiltered also "
            "ranks seen items)"
        ]
    ids = column("item", [item["item"] for item in items], terminal_width() // 2)
    titles = column(
        "title", [item["title"] for item in items], terminal_width() - len("rank    probability  ") - columns(ids[0])
    )
    numbers = ["rank", *(f"{item['rank']:4}" for item in items)]
    shares = ["probability", *(f"{item['probability']:11.2%}" for item in items)]
    return ["  ".join(cells) for cells in zip(numbers, titles, ids, shares, strict=True)]


def column(head: str, texts: list[str], most: int) -> list[str]:
    """Returns a column of texts below its head, all padded to one width of at most `most` or the head's width."""
    cut = [head, *(fitted(text, max(most, len(head))) for text in texts)]
    width = max(map(columns, cut))
    return [padded(text, width) for text in cut]
