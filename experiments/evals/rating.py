"""The rating task: predicts stars, from next-token probabilities and as generated, and explanations."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from data_pipelines.vocabulary import Vocabulary
from experiments.baselines.explanations import ConsensusExplanation, NearestExplanation
from experiments.baselines.ratings import BIASES, BiasedFactorisation, choose_factorisation
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
    titled,
)
from experiments.evals.config import GenerateConfig
from experiments.evals.queries import EvaluationQueries, evaluation_queries
from experiments.evals.recommender import SHARES
from experiments.memory import RatingMemory
from experiments.request import Request
from experiments.terminal import fitted, terminal_width
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.metrics import RATING_METRICS, rating_errors
from unimp_jax.evaluation.predictor import Predictor

VALIDATED = 2000
"""Number of validation users with whom the memory is chosen."""


class RatingEval(TaskEval):
    """The rating task: how many stars will an item get, and why?"""

    task = "rating"
    needs = ("item", "the id of the item to be rated")

    def evaluate(self, setting: Setting) -> Answered:
        data, predictor = setting.data, setting.predictor
        reviews, memory = setting.config.reviews, setting.memory.ratings
        return Answered(rate_held_out(data, predictor, setting.questions, reviews, memory))

    def query(self, data: ExperimentData, request: Request, query: Query, item_of: Callable[[str], int]) -> Query:
        if not len(data.vocabulary.rating_levels):
            raise DataError("this source has no ratings, so ratings cannot be predicted")
        return dataclasses.replace(query, right=(item_of(str(request.item)),))

    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        """Returns the item, the parsed best answer (`parse_rating`) and the expected rating."""
        vocabulary, beams = data.vocabulary, BeamConfig(config.beams, config.new_tokens)
        batches = prompt_batches(data, predictor, [query], tight=True)
        tokens, _ = predictor.generate(batches, 1, beams, eos=vocabulary.eos, pad=vocabulary.pad)
        expected = float(expected_ratings(data, predictor, [query], data.memory.ratings)[0])
        return titled(data.corpus, query.right)[0] | parse_rating(vocabulary, tokens[0]) | {"expected": expected}

    def show(self, answer: dict[str, Any]) -> list[str]:
        cut = "" if answer["whole"] else " … (cut off; raise --new-tokens to see more)"
        item = f"{fitted(answer['title'], terminal_width())} ({answer['item']})"
        if answer["rating"] is None:
            words = f"answer       {answer['answer'] or 'empty'}{cut}"
            return [item, "rating       none: the answer does not begin with a rating", words]
        explanation = answer["explanation"] or "none was generated"
        expected = f"expected     {answer['expected']:.2f}"
        return [item, f"rating       {answer['rating']:g}", expected, f"explanation  {explanation}{cut}"]


def choose_rating_memory(data: ExperimentData, predictor: Predictor) -> RatingMemory | None:
    """Returns the factorisation and its share that do best in validation with the model; None without such users."""
    queries = evaluation_queries(data, "validation", "rating", VALIDATED).queries
    if not queries:
        return None
    try:
        factorisation = choose_factorisation(data.corpus)
    except DataError:
        return None
    users, items, actual = rated(data.corpus, queries)
    ours = expected_ratings(data, predictor, queries)
    counted = factorisation.predict(users, items, moments(queries)[1])
    errors = {share: np.square((1 - share) * ours + share * counted - actual).mean() for share in SHARES}
    return RatingMemory(min(errors, key=lambda share: errors[share]), factorisation.config)


def rated(corpus: Corpus, queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (users, items, ratings) of rating queries; a rating is NaN if there is none."""
    users = np.array([query.user for query in queries])
    items = np.array([query.right[0] for query in queries])
    ends = corpus.offsets[users + 1] - 1
    events = np.minimum(corpus.offsets[users] + np.array([query.position for query in queries]), ends)
    return users, items, np.where(corpus.items[events] == items, corpus.ratings[events], np.nan)


def expected_ratings(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], memory: RatingMemory | None = None
) -> np.ndarray:
    """Returns the expected stars by next-token probabilities, combined with the memory if there is one: float64 [P]."""
    expected = next_token(data, predictor, queries, data.vocabulary.ratings) @ np.array(data.vocabulary.rating_levels)
    if memory is None:
        return expected
    users, items, _ = rated(data.corpus, queries)
    counted = BiasedFactorisation(data.corpus, memory.factorisation).predict(users, items, moments(queries)[1])
    return (1 - memory.share) * expected + memory.share * counted


def rate_held_out(
    data: ExperimentData,
    predictor: Predictor,
    questions: EvaluationQueries,
    config: BeamConfig,
    memory: RatingMemory | None = None,
) -> dict[str, Outcome]:
    """Evaluates ratings, from next-token probabilities and as generated, and explanations, if users wrote any."""
    corpus, vocabulary, queries = data.corpus, data.vocabulary, questions.queries
    users, positions = moments(queries)
    events = corpus.offsets[users] + positions
    items, actual = corpus.items[events], corpus.ratings[events]
    probabilities = next_token(data, predictor, queries, vocabulary.ratings)
    levels = np.array(vocabulary.rating_levels)
    predicted = {
        f"{OURS}, expected rating": probabilities @ levels,
        f"{OURS}, most probable rating": levels[probabilities.argmax(axis=1)],
    }
    note = f"How many stars will it get?{questions.note}"
    with contextlib.suppress(DataError):  # without training ratings there is no baseline
        factorisation = BiasedFactorisation(corpus, memory.factorisation) if memory else choose_factorisation(corpus)
        counted = factorisation.predict(users, items, positions)
        if memory is not None:
            mixed = (1 - memory.share) * predicted[f"{OURS}, expected rating"] + memory.share * counted
            predicted[f"{OURS} + memory, expected rating"] = mixed
            note += f" Memory: biased factorisation, a share of {memory.share:g}."
        biases = BiasedFactorisation(corpus, BIASES)
        predicted |= {
            "biased factorisation": counted,
            "user and item bias": biases.predict(users, items, positions),
            "mean rating": np.full(len(users), biases.mean, np.float32),
        }
    texts = [corpus.texts.get(int(event), "") for event in events]
    answers = question_columns(corpus, queries) | {
        "rating": actual,
        "probabilities": probabilities.tolist(),
        "review": texts,
    }
    explanations: dict[str, Outcome] = {}
    wrote = np.array([bool(text.strip()) for text in texts])
    if wrote.mean() >= 0.5:  # otherwise a review is not part of the answers
        ratings, ours, written, scores = write_reviews(data, predictor, queries, config)
        predicted |= {f"{OURS}, written rating": ratings}
        unread = int(np.isnan(ratings).sum())
        note += (
            f" {unread} of {len(queries)} written answers do not begin with a rating, and are left out of their row."
        )
        answers |= {"answer": written, "explanation": ours, "score": scores}
        explanations = explain(corpus, users, items, wrote, texts, ours, questions.note)
    metrics = {}
    for name, values in predicted.items():
        finite = np.isfinite(values)
        answers[f"{name}: rating"] = values.astype(np.float64)
        if finite.any():
            metrics[name] = rating_errors(values[finite], actual[finite])
    outcome = Outcome(note, metrics, answers, lambda _: RATING_METRICS, larger_is_better=False)
    return {"rating": outcome} | explanations


def explain(
    corpus: Corpus, users: np.ndarray, items: np.ndarray, wrote: np.ndarray, texts: list[str], ours: list[str],
    sampled: str = "",
) -> dict[str, Outcome]:  # fmt: skip
    """Evaluates explanations for the users who wrote one: as generated, and the best of these and of the memory's
    texts; beside the memory's alone, the nearest user's, and the same text for all.

    Args:
      sampled: a note about who was asked, after a blank.
    """
    # Scikit-learn, NLTK and sacreBLEU are only needed here, and take seconds to import.
    from unimp_jax.evaluation.texts import signatures, text_metrics, text_scores

    asked = np.flatnonzero(wrote)
    references = [texts[number] for number in asked]
    generated = {OURS: [ours[number] for number in asked]}
    with contextlib.suppress(DataError):  # without training texts there is no baseline
        consensus = ConsensusExplanation(corpus)
        among = {f"{OURS} + memory": consensus.explain(users[asked], items[asked], generated[OURS])}
        generated = among | generated | {consensus.name: consensus.explain(users[asked], items[asked])}
        nearest = NearestExplanation(corpus)
        generated["Nearest text"] = nearest.explain(users[asked], items[asked])
        generated["Constant text"] = [nearest.constant] * len(asked)
    metrics = {name: text_scores(generated_texts, references) for name, generated_texts in generated.items()}
    answers = {
        "user": [corpus.user_ids[user] for user in users[asked]],
        "item": [corpus.item_ids[item] for item in items[asked]],
        "review": references,
        **{f"{name}: explanation": generated_texts for name, generated_texts in generated.items()},
    }
    silent = int((~wrote).sum())
    left_out = f"Left out: {silent:,} users who wrote no explanation. " if silent else ""
    note = (
        f"Why?{sampled} {left_out}"
        + "; ".join(f"{name}: {signature}" for name, signature in signatures().items())
        + "."
    )
    return {"explanation": Outcome(note, metrics, answers, text_metrics)}


def write_reviews(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], config: BeamConfig
) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """Generates ratings and explanations of rating queries by beam search over all tokens.

    Returns:
      (float64 [P], the stars that an answer begins with, NaN if there are none; the explanations after them; whole
      answers; float32 [P], their log-probabilities under the length penalty).
    """
    vocabulary = data.vocabulary
    batches = prompt_batches(data, predictor, queries, tight=True)
    tokens, scores = predictor.generate(batches, len(queries), config, eos=vocabulary.eos, pad=vocabulary.pad)
    parsed = [parse_rating(vocabulary, row) for row in tokens]
    explanations = [one.get("explanation", one.get("answer", "")) for one in parsed]
    texts = [vocabulary.decode(row[: np.append(np.flatnonzero(row == vocabulary.eos), len(row))[0]]) for row in tokens]
    return np.array([one["rating"] for one in parsed], np.float64), explanations, texts, scores


def parse_rating(vocabulary: Vocabulary, tokens: np.ndarray) -> dict[str, Any]:
    """Returns `rating`, the stars that an answer (int32 [n], up to the end token) begins with, and `explanation`, the
    text after them; without stars None, and the whole text as `answer`; and `whole`, whether the answer is complete."""
    ends = np.flatnonzero(tokens == vocabulary.eos)
    answer = tokens[: ends[0]] if len(ends) else tokens
    level = np.flatnonzero(np.isin(vocabulary.ratings, answer[:1]))
    words = vocabulary.decode(answer[len(level) :].tolist())
    if len(level):
        return {"rating": vocabulary.rating_levels[level[0]], "explanation": words, "whole": bool(len(ends))}
    return {"rating": None, "answer": words, "whole": bool(len(ends))}
