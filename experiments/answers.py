"""Each task's held-out questions, put to a model and to baselines: figures of every user, and what was answered.

An `Outcome` goes into a table (`experiments.evaluate`) and, whole, into a Parquet file, from which any figure can be
computed anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from experiments.ask import ask_for_items, ask_for_ratings, ask_for_reviews, ask_for_selections
from experiments.baselines.explanations import ConstantExplanation, NearestExplanation
from experiments.baselines.factorisation import choose_factorisation
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import Ranker, rank_in_batches, scored_batches
from experiments.baselines.ratings import BiasedMean, GlobalMean
from experiments.data import ExperimentData
from experiments.questions import Questions
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.metrics import (
    RATING_FIGURES,
    SELECTION_FIGURES,
    Means,
    ranking_metrics,
    rating_errors,
    selection_counts,
)
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.evaluation.ranking import Ranked
from unimp_jax.evaluation.texts import signatures, text_figures, text_scores

OURS = "UniMP"
PerUser = dict[str, np.ndarray]
Formulas = Mapping[str, Callable[[Means], np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A task's questions and everybody's answers.

    Attributes:
      note: what was asked, in a sentence or two.
      figures: for each model, values of its users by name, of whose means figures are made.
      formulas: for each model, what makes figures of these means; a model that is not there is told by the means.
      answers: columns, one value a question: who was asked what, and what was answered.
      larger_is_better: of all figures.
    """

    note: str
    figures: dict[str, PerUser]
    answers: dict[str, Any]
    formulas: Callable[[PerUser], Formulas] | None = None
    larger_is_better: bool = True


def save_answers(outcome: Outcome, path: Path) -> None:
    """Parquet, a row a question: the answers, and each model's figures of the user as `MODEL: FIGURE`; whole or not at
    all. A figure that a model has not for everyone (a rating that could not be read) is null."""
    columns = dict(outcome.answers)
    count = len(next(iter(columns.values())))
    for model, per_user in outcome.figures.items():
        there = np.isfinite(columns.get(f"{model}: rating", np.zeros(count)))
        for name, values in per_user.items():
            whole = np.full(count, np.nan)
            whole[there] = values
            columns[f"{model}: {name}"] = pa.array(whole, from_pandas=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.table(columns), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def asked(corpus: Corpus, queries: Sequence[Query]) -> dict[str, Any]:
    """Who was asked, and about which item."""
    return {
        "user": [corpus.user_ids[query.user] for query in queries],
        "position": [query.position for query in queries],
        "item": [corpus.item_ids[query.right[0]] for query in queries],
    }


def ask_items(
    data: ExperimentData, predictor: Predictor, rankers: Sequence[Ranker], questions: Questions, task: str, beams: int
) -> tuple[Outcome, Ranked]:
    """(outcome, our ranking) of recommendation or search."""
    corpus, queries = data.corpus, questions.queries
    ranked = ask_for_items(data, predictor, queries, beams=beams)
    figures = {OURS: rank_figures(ranked.kept, ranked.filtered)}
    answers = asked(corpus, queries) | {
        "items": [[corpus.item_ids[item] for item in row if item >= 0] for row in ranked.top],
        "scores": [[score for score in row if np.isfinite(score)] for row in ranked.scores.tolist()],
        "cross entropy": ranked.cross_entropy,
        f"{OURS}: rank, seen kept": ranked.kept,
        f"{OURS}: rank, seen filtered": ranked.filtered,
    }
    targets = np.array([query.right[0] for query in queries], np.int32)
    for ranker in map(for_search(corpus), rankers) if task == "search" else rankers:
        kept, filtered = rank_in_batches(ranker, corpus, *moments(queries), targets)
        figures[ranker.name] = rank_figures(kept, filtered)
        answers |= {f"{ranker.name}: rank, seen kept": kept, f"{ranker.name}: rank, seen filtered": filtered}
    if task == "search":
        answers["query"] = [", ".join(corpus.categories[query.right[0]]) for query in queries]
    wanted = "What comes next, given its categories as a query?" if task == "search" else "What comes next?"
    found = "" if data.vocabulary.depth == 1 else f" Semantic ids, searched for with {beams} beams."
    note = f"{wanted} Seen items filtered, but for the last columns.{found}{questions.note}"
    return Outcome(note, figures, answers), ranked


def rank_figures(kept: np.ndarray, filtered: np.ndarray) -> PerUser:
    """Every metric with seen items filtered, then kept."""
    return ranking_metrics(filtered) | {
        f"{name} (seen kept)": values for name, values in ranking_metrics(kept, (10,)).items()
    }


def moments(queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
    """(users, positions) as rankers take them, int32 [P] each."""
    return np.array([q.user for q in queries], np.int32), np.array([q.position for q in queries], np.int32)


def for_search(corpus: Corpus) -> Callable[[Ranker], Ranker]:
    """A baseline that ranks what matches the query first."""

    def query_of(user: int, position: int) -> Sequence[str]:
        return corpus.categories[int(corpus.items[corpus.offsets[user] + position])]

    return lambda ranker: QueryMatch(ranker, WordMatches(corpus.categories, query_of))


def ask_preference(
    data: ExperimentData, predictor: Predictor, questions: Questions, config: BeamConfig
) -> dict[str, Outcome]:
    """Ratings, from the next token's probabilities and as written; and explanations, where people wrote any."""
    corpus, vocabulary, queries = data.corpus, data.vocabulary, questions.queries
    users = np.array([query.user for query in queries])
    events = corpus.offsets[users] + np.array([query.position for query in queries])
    items, actual = corpus.items[events], corpus.ratings[events]
    probabilities = ask_for_ratings(data, predictor, queries)
    levels = np.array(vocabulary.rating_levels)
    predicted = {
        f"{OURS}, expected rating": probabilities @ levels,
        f"{OURS}, most probable rating": levels[probabilities.argmax(axis=1)],
    }
    with contextlib.suppress(DataError):  # nothing was rated in training: there is nothing to compare with
        predicted |= {
            "biased factorisation": choose_factorisation(corpus).predict(users, items),
            "user and item bias": BiasedMean(corpus).predict(users, items),
            "mean rating": GlobalMean(corpus).predict(users, items),
        }
    texts = [corpus.texts.get(int(event), "") for event in events]
    answers = asked(corpus, queries) | {"rating": actual, "probabilities": probabilities.tolist(), "review": texts}
    note, explanations = f"How many stars will it get?{questions.note}", {}
    wrote = np.array([bool(text.strip()) for text in texts])
    if wrote.mean() >= 0.5:  # elsewhere, a review is not what is answered
        reviews = ask_for_reviews(data, predictor, queries, config)
        predicted |= {f"{OURS}, written rating": reviews.ratings}
        unread = int(np.isnan(reviews.ratings).sum())
        note += f" Of {len(queries)} written answers {unread} begin with no rating, and are left out of their row."
        answers |= {"answer": reviews.texts, "explanation": reviews.explanations, "score": reviews.scores}
        explanations = explain(corpus, users, items, wrote, texts, reviews.explanations, questions.note)
    figures = {}
    for name, values in predicted.items():
        there = np.isfinite(values)
        answers[f"{name}: rating"] = values.astype(np.float64)
        if there.any():
            figures[name] = rating_errors(values[there], actual[there])
    outcome = Outcome(note, figures, answers, lambda _: RATING_FIGURES, larger_is_better=False)
    return {"preference": outcome} | explanations


def explain(
    corpus: Corpus, users: np.ndarray, items: np.ndarray, wrote: np.ndarray, texts: list[str], ours: list[str],
    sampled: str = "",
) -> dict[str, Outcome]:  # fmt: skip
    """The explanations of those who wrote one, beside the same text for all and the nearest person's.

    Args:
      sampled: what is to be said of who was asked, behind a blank.
    """
    asked = np.flatnonzero(wrote)
    references = [texts[number] for number in asked]
    generated = {OURS: [ours[number] for number in asked]}
    with contextlib.suppress(DataError):  # nothing was written in training: there is nothing to compare with
        for baseline in (NearestExplanation(corpus), ConstantExplanation(corpus)):
            generated[baseline.name] = baseline.explain(users[asked], items[asked])
    figures = {name: text_scores(said, references) for name, said in generated.items()}
    answers = {
        "user": [corpus.user_ids[user] for user in users[asked]],
        "item": [corpus.item_ids[item] for item in items[asked]],
        "review": references,
        **{f"{name}: explanation": said for name, said in generated.items()},
    }
    silent = int((~wrote).sum())
    left_out = f"Left out: {silent:,} who wrote nothing. " if silent else ""
    note = (
        f"Why?{sampled} {left_out}"
        + "; ".join(f"{name}: {signature}" for name, signature in signatures().items())
        + "."
    )
    return {"explanation": Outcome(note, figures, answers, text_figures)}


def ask_selections(
    data: ExperimentData, predictor: Predictor, rankers: Sequence[Ranker], questions: Questions
) -> Outcome:
    """What was chosen of three candidates; a baseline chooses the one it scores best."""
    corpus, queries = data.corpus, questions.queries
    right = [query.right for query in queries]
    candidates = np.array([query.candidates for query in queries])
    chosen: dict[str, Any] = {OURS: ask_for_selections(data, predictor, queries)}
    for ranker in rankers:
        of_candidates = np.empty(candidates.shape, np.float32)
        for part, scores in scored_batches(ranker, corpus, *moments(queries)):
            of_candidates[part] = np.take_along_axis(scores, candidates[part], axis=1)
            del scores  # before the next ones are made
        best = np.take_along_axis(candidates, of_candidates.argmax(axis=1)[:, None], axis=1)
        chosen[f"{ranker.name}, best one"] = best.tolist()

    def named(rows: Any) -> list[list[str]]:
        return [[corpus.item_ids[item] for item in row] for row in rows]

    answers = asked(corpus, queries) | {"right": named(right), "candidates": named(candidates)}
    answers |= {f"{name}: chosen items": named(rows) for name, rows in chosen.items()}
    figures = {name: selection_counts(rows, right) for name, rows in chosen.items()}
    note = f"Which of three, one or two of them right? Micro averages.{questions.note}"
    return Outcome(note, figures, answers, lambda _: SELECTION_FIGURES)
