"""`unimp evaluate`: all tasks of a run on held-out data, beside baselines that answer the very same questions.

Leaves `evaluation/<split>.json` (tables and samples) and `evaluation/<split>.npz` (every figure of every user, from
which any table can be computed anew) in the folder of the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.queries import Query, held_out_queries
from experiments.ask import Model, Split, ask_for_items, ask_for_ratings, ask_for_selections, seen_items
from experiments.baselines.markov import choose_markov
from experiments.baselines.popularity import Popularity
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import Ranker
from experiments.baselines.ratings import BiasedMean, GlobalMean
from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_training import train_sasrec
from experiments.data import ExperimentData
from experiments.results import Evaluation, Row, Sample, Table, save_evaluation
from experiments.run import Checkpoint, open_model
from unimp_jax.evaluation.bootstrap import figure, interval
from unimp_jax.evaluation.harness import Ranked
from unimp_jax.evaluation.metrics import (
    RATING_FIGURES,
    SELECTION_FIGURES,
    ranking_metrics,
    rating_errors,
    selection_counts,
)
from unimp_jax.evaluation.ranking import ranks

OURS = "UniMP"
PerUser = dict[str, np.ndarray]
SAMPLED_HISTORY = 10


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured."""

    split: Split = "test"
    checkpoint: Checkpoint = "best"
    """The best by validation, or the latest."""
    beams: int = 20
    """With which items are searched for that have semantic ids."""
    sasrec: bool = True
    """Whether SASRec is trained as well (the other baselines only count)."""
    sasrec_config: SASRecConfig = SASRecConfig()
    """Its geometry and the time it is given."""
    samples: int = 8
    """Users whose history and recommendations are shown."""
    seed: int = 0
    """Of the bootstrap and of which users are shown."""


def evaluate_run(folder: Path, config: EvaluationConfig) -> Evaluation:
    """Asks the run's model everything, and the baselines as well; writes what came of it.

    Raises:
      DataError: the folder holds no run, or its data is not prepared.
      CheckpointError: the run has no whole checkpoint.
    """
    start = time.perf_counter()
    data, model, facts = open_model(folder, config.checkpoint)
    corpus = data.corpus
    rankers = fit_rankers(corpus, config)
    items = {task: ask_items(data, model, rankers, config, task) for task in ("recommendation", "search")}
    outcomes = {task: outcome for task, (outcome, _, _) in items.items()}
    outcomes["preference"] = ask_ratings(data, model, config.split)
    outcomes["selection"] = ask_selections(data, model, rankers, config.split)
    _, queries, ranked = items["recommendation"]
    evaluation = Evaluation(
        source=data.config.data.source,
        split=config.split,
        step=facts.step,
        tables=tuple(tabulate(task, outcome, config.seed) for task, outcome in outcomes.items() if outcome),
        samples=sample(corpus, queries, ranked, config),
        seconds=time.perf_counter() - start,
        facts=facts.described,
    )
    if jax.process_index() == 0:
        save_evaluation(evaluation, folder / "evaluation" / f"{config.split}.json")
        arrays: dict[str, Any] = {
            f"{task}/{model}/{name}": values
            for task, outcome in outcomes.items()
            for model, per_user in outcome.items()
            for name, values in per_user.items()
        }
        np.savez_compressed(folder / "evaluation" / f"{config.split}.npz", **arrays)
    return evaluation


def fit_rankers(corpus: Corpus, config: EvaluationConfig) -> list[Ranker]:
    rankers: list[Ranker] = [Popularity(corpus), choose_markov(corpus)]
    if config.sasrec:
        rankers.append(train_sasrec(corpus, config.sasrec_config))
    return rankers


def ask_items(
    data: ExperimentData, model: Model, rankers: Sequence[Ranker], config: EvaluationConfig, task: str
) -> tuple[dict[str, PerUser], list[Query], Ranked | None]:
    """(figures of each user by model, the questions, our ranking) of recommendation or search."""
    queries = held_out_queries(data.corpus, config.split, task)
    if not queries:
        return {}, [], None
    ranked = ask_for_items(data, model, queries, beams=config.beams)
    outcome = {OURS: rank_figures(ranked.kept, ranked.filtered)}
    seen = seen_items(data.corpus, queries)
    targets = np.array([query.right[0] for query in queries], np.int32)
    for ranker in map(for_search(data.corpus), rankers) if task == "search" else rankers:
        kept, filtered = jax.device_get(ranks(score_in_batches(ranker, queries), targets, seen))
        outcome[ranker.name] = rank_figures(kept, filtered)
    return outcome, queries, ranked


def rank_figures(kept: np.ndarray, filtered: np.ndarray) -> PerUser:
    """Every metric with seen items filtered, then kept."""
    return ranking_metrics(filtered) | {
        f"{name} (seen kept)": values for name, values in ranking_metrics(kept, (10,)).items()
    }


def score_in_batches(ranker: Ranker, queries: Sequence[Query], size: int = 512) -> np.ndarray:
    """float32 [P, I]."""
    users = np.array([query.user for query in queries], np.int32)
    positions = np.array([query.position for query in queries], np.int32)
    parts = np.arange(-(-len(users) // size) * size).reshape(-1, size) % len(users)  # equal sizes compile once
    return np.concatenate([np.asarray(ranker.scores(users[p], positions[p])) for p in parts])[: len(users)]


def for_search(corpus: Corpus) -> Callable[[Ranker], Ranker]:
    """A baseline that ranks what matches the query first."""

    def query_of(user: int, position: int) -> Sequence[str]:
        return corpus.categories[int(corpus.items[corpus.offsets[user] + position])]

    return lambda ranker: QueryMatch(ranker, WordMatches(corpus.categories, query_of))


def ask_ratings(data: ExperimentData, model: Model, split: Split) -> dict[str, PerUser]:
    """Errors of each user's rating: the expected value and the most probable level, beside means."""
    queries = held_out_queries(data.corpus, split, "preference")
    if not queries:
        return {}
    corpus = data.corpus
    users = np.array([query.user for query in queries])
    events = corpus.offsets[users] + np.array([query.position for query in queries])
    items, actual = corpus.items[events], corpus.ratings[events]
    levels = np.array(data.vocabulary.rating_levels)
    probabilities = ask_for_ratings(data, model, queries)
    predicted = {
        f"{OURS}, expected rating": probabilities @ levels,
        f"{OURS}, most probable rating": levels[probabilities.argmax(axis=1)],
        "user and item bias": BiasedMean(corpus).predict(users, items),
        "mean rating": GlobalMean(corpus).predict(users, items),
    }
    return {name: rating_errors(values, actual) for name, values in predicted.items()}


def ask_selections(data: ExperimentData, model: Model, rankers: Sequence[Ranker], split: Split) -> dict[str, PerUser]:
    """What was chosen of three candidates; a baseline chooses the one it scores best."""
    queries = held_out_queries(data.corpus, split, "selection")
    if not queries:
        return {}
    right = [query.right for query in queries]
    outcome = {OURS: selection_counts(ask_for_selections(data, model, queries), right)}
    candidates = np.array([query.candidates for query in queries])
    for ranker in rankers:
        scores = np.take_along_axis(score_in_batches(ranker, queries), candidates, axis=1)
        chosen = np.take_along_axis(candidates, scores.argmax(axis=1)[:, None], axis=1)
        outcome[f"{ranker.name}, best one"] = selection_counts(chosen.tolist(), right)
    return outcome


FIGURES: Mapping[str, Mapping[str, Callable[..., np.ndarray]]] = {
    "preference": RATING_FIGURES,
    "selection": SELECTION_FIGURES,
}
NOTES = {
    "recommendation": "What comes next? Seen items filtered, but for the last columns.",
    "search": "What comes next, given its genres as a query? Seen items filtered, but for the last columns.",
    "preference": "How many stars will it get?",
    "selection": "Which of three, one or two of them right? Micro averages.",
}


def tabulate(task: str, outcome: Mapping[str, PerUser], seed: int) -> Table:
    """Means (or RMSE, F1, … of means) with bootstrap intervals over users."""
    rows = []
    for model, per_user in outcome.items():
        if task in FIGURES:
            figures = {name: figure(per_user, formula, seed=seed) for name, formula in FIGURES[task].items()}
        else:
            figures = {name: interval(values, seed=seed) for name, values in per_user.items()}
        rows.append(Row(model, figures))
    users = len(next(iter(next(iter(outcome.values())).values())))
    return Table(task, users, task != "preference", tuple(rows), NOTES[task])


def sample(
    corpus: Corpus, queries: Sequence[Query], ranked: Ranked | None, config: EvaluationConfig
) -> tuple[Sample, ...]:
    """Some users, drawn by the seed, as many found within the ten best as not, where there are."""
    if ranked is None:
        return ()
    order = np.random.default_rng(config.seed).permutation(len(queries))
    found = [n for n in order.tolist() if ranked.filtered[n] <= 10][: config.samples // 2]
    missed = [n for n in order.tolist() if ranked.filtered[n] > 10][: config.samples - len(found)]
    return tuple(
        Sample(
            user=corpus.user_ids[queries[n].user],
            history=tuple(corpus.history(queries[n].user, queries[n].position)[-SAMPLED_HISTORY:].tolist()),
            target=queries[n].right[0],
            rank=float(ranked.filtered[n]),
            top=tuple(item for item in ranked.top[n].tolist() if item >= 0),
        )
        for n in found + missed
    )


def show(evaluation: Evaluation) -> str:
    """The tables as text for a terminal."""
    lines = [f"{evaluation.source}, {evaluation.split}, step {evaluation.step}"]
    for table in evaluation.tables:
        names = list(table.rows[0].figures)
        width = max(len(row.model) for row in table.rows)
        lines += ["", f"{table.task} ({table.users} users). {table.note}"]
        lines.append(" ".join([" " * width, *(f"{name.replace(' (seen kept)', '*'):>9}" for name in names)]))
        for row in table.rows:
            lines.append(" ".join([f"{row.model:{width}}", *(f"{row.figures[name].mean:9.4f}" for name in names)]))
    return "\n".join([*lines, "", "* seen items kept"])
