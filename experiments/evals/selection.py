"""The selection task: which of three items suit the user, by Bayes' rule from next-item probabilities, and as
generated.

A query offers the right items among others that are drawn uniformly from the catalogue of I items. With p(i) the
probability that item i comes next, the probability that a set S of candidates is right is proportional to

    prior(|S|) / (number of sets of this size) * product over i in S of  I p(i)

where I p(i) is how much more likely i is to come next than to be drawn. Of all sets the one with the highest expected
F1 is answered, which is not always the most probable set: an item pays as soon as it is right with half of the F1 that
is reached (Lipton et al. 2014).
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks import TASKS, Query, TaskData
from data_pipelines.tasks.selection import PRIOR
from data_pipelines.vocabulary import NUM_CANDIDATES
from experiments.baselines.calibration import softmax
from experiments.baselines.ranker import scored_batches
from experiments.data import ExperimentData
from experiments.evals.base import (
    OURS,
    Answered,
    Outcome,
    Setting,
    TaskEval,
    moments,
    next_token,
    prompt_batches,
    question_columns,
    refuse_nan,
    titled,
)
from experiments.evals.config import GenerateConfig
from experiments.evals.recommender import calibration_of, recommender
from experiments.request import Request
from experiments.terminal import fitted, terminal_width
from unimp_jax.evaluation.metrics import SELECTION_METRICS, selection_counts
from unimp_jax.evaluation.predictor import Predictor

THRESHOLD = 0.4
"""Probability above which an item is answered: half of an F1 of 0.8, which is about what all models reach."""


class SelectionEval(TaskEval):
    """The selection task: which of three items are right, if one or two are?"""

    task = "selection"
    needs_rankers = True
    needs = ("candidates", f"the ids of {NUM_CANDIDATES} items to select from")

    def quality(self, corpus: Corpus, users: np.ndarray, positions: np.ndarray) -> Callable[[np.ndarray], float]:
        """F1 of choosing the next item from among two others; 0 if no user has enough unseen items left."""
        task, data = TASKS[self.task], TaskData.of(corpus, None)
        pairs = enumerate(zip(users.tolist(), positions.tolist(), strict=True))
        asked = {row: task.held_out(data, "validation", *pair) for row, pair in pairs}
        offered = {row: query.candidates for row, query in asked.items() if isinstance(query, Query)}
        rows, candidates = [*offered], np.array([*offered.values()], np.int64).reshape(-1, NUM_CANDIDATES)
        right = corpus.targets(users, positions)[rows, None].tolist()

        def f1(log_p_MI: np.ndarray) -> float:
            sets = best_sets(log_p_MI[np.array(rows)[:, None], candidates], corpus.num_items, PRIOR)
            chosen = [candidates[row, list(places)].tolist() for row, places in enumerate(sets)]
            counts = selection_counts(chosen, right)
            means = {name: column.mean(keepdims=True) for name, column in counts.items()}
            return float(SELECTION_METRICS["F1"](means)[0])

        return f1 if rows else lambda _: 0.0

    def evaluate(self, setting: Setting) -> Answered:
        corpus, queries = setting.data.corpus, setting.questions.queries
        right = [query.right for query in queries]
        sizes = collections.Counter(map(len, right))
        prior = {size: count / len(right) for size, count in sorted(sizes.items())}  # as the questions are made
        candidates = np.array([query.candidates for query in queries])
        chosen: dict[str, Any] = {OURS: select(setting.data, setting.predictor, queries, prior)}
        chosen[f"{OURS}, written"] = select_as_written(setting.data, setting.predictor, queries)
        for ranker in setting.rankers:
            log_p = np.empty(candidates.shape)
            calibration = calibration_of(ranker, corpus)
            for part, scores in scored_batches(ranker, corpus, *moments(queries)):
                log_p[part] = np.take_along_axis(calibration.log_probabilities(scores), candidates[part], axis=1)
                del scores  # to free memory before the next batch
            best = np.take_along_axis(candidates, log_p.argmax(axis=1)[:, None], axis=1)
            chosen[ranker.name] = chosen_items(queries, best_sets(log_p, corpus.num_items, prior))
            chosen[f"{ranker.name}, best one"] = best.tolist()

        def named(rows: Any) -> list[list[str]]:
            return [[corpus.item_ids[item] for item in row] for row in rows]

        answers = question_columns(corpus, queries) | {"right": named(right), "candidates": named(candidates)}
        answers |= {f"{name}: chosen items": named(rows) for name, rows in chosen.items()}
        metrics = {name: selection_counts(rows, right) for name, rows in chosen.items()}
        note = (
            "Which of three candidates are right (one or two)? Micro averages. By Bayes' rule from next-item "
            "probabilities, for the highest expected F1; written: the generated answer; best one: the best of the "
            f"three only.{setting.questions.note}"
        )
        return Answered({self.task: Outcome(note, metrics, answers, lambda _: SELECTION_METRICS)})

    def query(self, data: ExperimentData, request: Request, query: Query, item_of: Callable[[str], int]) -> Query:
        return dataclasses.replace(query, candidates=tuple(map(item_of, request.candidates)))

    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        chosen = select(data, predictor, [query])[0]
        return {"candidates": titled(data.corpus, query.candidates), "chosen": titled(data.corpus, chosen)}

    def show(self, answer: dict[str, Any]) -> list[str]:
        chosen = [item["item"] for item in answer["chosen"]]
        marks = ["chosen" if item["item"] in chosen else "" for item in answer["candidates"]]
        return [
            f"{mark:6}  {fitted(item['title'], terminal_width())} ({item['item']})"
            for mark, item in zip(marks, answer["candidates"], strict=True)
        ]


def select(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], prior: Mapping[int, float] = PRIOR
) -> list[tuple[int, ...]]:
    """Returns one or two of the three items by their next-item probabilities, with the highest expected F1."""
    candidates = np.array([query.candidates for query in queries])
    if "selection" not in data.memory.items:
        asked = [Query("recommendation", query.user, query.position, query.right[:1]) for query in queries]
        log_p = predictor.score(prompt_batches(data, predictor, asked), data.vocabulary.items[candidates])
    else:
        log_p_MI = recommender(data, predictor, "selection").scores(*moments(queries))
        log_p = np.take_along_axis(log_p_MI, candidates, axis=1)
    return chosen_items(queries, best_sets(log_p, data.corpus.num_items, prior))


def probable_sets(
    log_p: np.ndarray, num_items: int, prior: Mapping[int, float]
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Returns (sets of candidates as indices, the probability of each that these are the right ones: [P, sets]).

    Args:
      log_p: [P, c], the log-probability of each candidate to come next.
      num_items: number of items in the catalogue.
      prior: number of right candidates -> its frequency among the queries.
    """
    candidates = log_p.shape[1]
    sets = [places for size in prior for places in itertools.combinations(range(candidates), size)]
    gains = log_p.astype(np.float64) + math.log(num_items)
    scores = [
        gains[:, list(places)].sum(axis=1) + math.log(prior[len(places)] / math.comb(candidates, len(places)))
        for places in sets
    ]
    return sets, softmax(np.stack(scores, axis=1))


def best_sets(log_p: np.ndarray, num_items: int, prior: Mapping[int, float]) -> list[tuple[int, ...]]:
    """Returns the set of each query with the highest expected F1, as indices of its candidates; see `probable_sets`.
    Raises ValueError for NaN."""
    sets, p_PS = probable_sets(refuse_nan(log_p), num_items, prior)
    is_in_SC = np.array([[place in places for place in range(log_p.shape[1])] for places in sets])
    is_right_PC = p_PS @ is_in_SC  # the probability that a candidate is right
    return [sets[number] for number in np.argmax((is_right_PC - THRESHOLD) @ is_in_SC.T, axis=1).tolist()]


def chosen_items(queries: Sequence[Query], sets: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Converts indices of candidates to items."""
    return [tuple(query.candidates[place] for place in places) for query, places in zip(queries, sets, strict=True)]


def select_as_written(data: ExperimentData, predictor: Predictor, queries: Sequence[Query]) -> list[tuple[int, ...]]:
    """Returns the most probable valid answer that the model generates for each selection query: one or two items of
    three.

    Answers name candidates in ascending order and then end, so an answer's probability is a product of at most three
    next-token probabilities, each among the tokens that may follow: any candidate first; then the end or a later
    candidate; then the end.
    """
    selections, eos = data.vocabulary.selections, data.vocabulary.eos
    followers = [np.array([eos, *selections[first + 1 :]]) for first in range(NUM_CANDIDATES)]
    begin = np.log(next_token(data, predictor, queries, selections))
    scores: dict[tuple[int, ...], np.ndarray] = {}
    for first in range(NUM_CANDIDATES - 1):
        begun = [(int(selections[first]),)] * len(queries)
        follow = np.log(next_token(data, predictor, queries, followers[first], begun))
        scores[(first,)] = begin[:, first] + follow[:, 0]
        for place, second in enumerate(range(first + 1, NUM_CANDIDATES), start=1):
            scores[first, second] = begin[:, first] + follow[:, place]
    scores[(NUM_CANDIDATES - 1,)] = begin[:, -1]  # only the end can follow the last candidate
    answers = list(scores)
    best = np.argmax(np.stack([scores[answer] for answer in answers], axis=1), axis=1)
    return chosen_items(queries, [answers[number] for number in best.tolist()])
