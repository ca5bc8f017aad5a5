"""Each task's held-out questions put to a model, and its answers: figures for every user, from exact scores.

A recommendation is the catalogue ranked by the next token's probability, or the best of its semantic ids that a search
finds; a rating is a distribution over the levels; a selection is the most probable of the six answers that are valid;
an explanation, with the rating before it, is what beam search writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.loader import QuestionBatch, Share
from data_pipelines.tasks import Query
from data_pipelines.vocabulary import NUM_CANDIDATES
from experiments.data import ExperimentData
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.predictor import Predictor, Seen
from unimp_jax.evaluation.ranking import Ranked
from unimp_jax.sharding import row_shards


def seen_items(corpus: Corpus, queries: Sequence[Query]) -> Seen:
    """What each asked user had met before the question, by the question's number."""
    return lambda number: corpus.history(queries[number].user, queries[number].position)


def evenly_spread(queries: Sequence[Query], count: int | None) -> list[Query]:
    """`count` of them in their order, or all where there are fewer; None: all."""
    count = len(queries) if count is None else min(count, len(queries))
    return [queries[len(queries) * number // count] for number in range(count)]


def prompt_batches(
    data: ExperimentData,
    predictor: Predictor,
    queries: Sequence[Query],
    *,
    begun: Sequence[tuple[int, ...]] | None = None,
    tight: bool = False,
) -> grain.DatasetIterator[QuestionBatch]:
    """This process's share of batches of prompts.

    Args:
      begun: of each question, the tokens that its answer begins with.
      tight: batches are no larger than these prompts need.
    """
    starts = [()] * len(queries) if begun is None else begun
    prompts = [data.writer.write(query, ask=True, begun=start) for query, start in zip(queries, starts, strict=True)]
    share = Share(*row_shards(predictor.mesh))
    return data.questions(prompts, share, tight=tight, pictures=predictor.needs_images)


def ask_for_items(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], k: int = 10, beams: int = 20
) -> Ranked:
    """The best items for recommendation or search questions, and where among them the right ones are.

    Where each item has a token of its own, the whole catalogue is ranked exactly; semantic ids are searched for, by so
    many `beams`.
    """
    targets = np.array([query.right[0] for query in queries], np.int32)
    seen, items = seen_items(data.corpus, queries), data.vocabulary.items
    if data.vocabulary.depth == 1:
        batches = prompt_batches(data, predictor, queries)
        return predictor.rank(batches, item_tokens=items[:, 0], targets=targets, seen=seen, k=k)
    batches = prompt_batches(data, predictor, queries, tight=True)
    return predictor.search(
        batches, trie=data.trie, item_tokens=items, targets=targets, seen=seen, k=k, beams=beams
    )  # fmt: skip


def find_items(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], k: int, beams: int, *, keep_seen: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The best items for open questions, whatever the right ones are: (int32 [P, k], -1 where there are no more, and
    their log-probabilities, float32); with `keep_seen`, items of the history may be among them."""
    nothing = np.empty(0, np.int32)
    seen = (lambda _: nothing) if keep_seen else seen_items(data.corpus, queries)
    batches = prompt_batches(data, predictor, queries, tight=True)
    return predictor.best_items(batches, len(queries), trie=data.trie, excluded=seen, k=k, beams=beams)


def ask_for_ratings(data: ExperimentData, predictor: Predictor, queries: Sequence[Query]) -> np.ndarray:
    """The probability of each rating level for preference questions: float32 [P, levels]."""
    return _next_token(data, predictor, queries, None, data.vocabulary.ratings)


def ask_for_selections(data: ExperimentData, predictor: Predictor, queries: Sequence[Query]) -> list[tuple[int, ...]]:
    """The most probable valid answer to each selection question: the items chosen, one or two of the three.

    Answers name candidates in ascending order and end, so the probability of one is a product of at most three next
    tokens, each among those that may follow: any candidate first; then the end or a later candidate; then the end.
    """
    selections, eos = data.vocabulary.selections, data.vocabulary.eos
    followers = [np.array([eos, *selections[first + 1 :]]) for first in range(NUM_CANDIDATES)]
    begin = np.log(_next_token(data, predictor, queries, None, selections))
    scores: dict[tuple[int, ...], np.ndarray] = {}
    for first in range(NUM_CANDIDATES - 1):
        begun = [(int(selections[first]),)] * len(queries)
        follow = np.log(_next_token(data, predictor, queries, begun, followers[first]))
        scores[(first,)] = begin[:, first] + follow[:, 0]
        for place, second in enumerate(range(first + 1, NUM_CANDIDATES), start=1):
            scores[first, second] = begin[:, first] + follow[:, place]
    scores[(NUM_CANDIDATES - 1,)] = begin[:, -1]  # nothing but the end can follow the last candidate
    answers = list(scores)
    best = np.argmax(np.stack([scores[answer] for answer in answers], axis=1), axis=1)
    return [
        tuple(query.candidates[place] for place in answers[number])
        for query, number in zip(queries, best.tolist(), strict=True)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Reviews:
    """What was written about P items.

    Attributes:
      ratings: float64 [P], the stars that the answer begins with; NaN where it does not begin with a rating.
      explanations: the text behind the rating, or the whole of it where there is none.
      texts: whole answers, for people.
      scores: float32 [P], log-probabilities under the length penalty.
    """

    ratings: np.ndarray
    explanations: list[str]
    texts: list[str]
    scores: np.ndarray


def ask_for_reviews(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], config: BeamConfig
) -> Reviews:
    """Rating and explanation of preference questions, as beam search over all tokens writes them."""
    vocabulary = data.vocabulary
    batches = prompt_batches(data, predictor, queries, tight=True)
    tokens, scores = predictor.generate(batches, len(queries), config, eos=vocabulary.eos, pad=vocabulary.pad)
    levels = dict(zip(vocabulary.ratings.tolist(), vocabulary.rating_levels, strict=True))
    ratings, explanations, texts = np.full(len(queries), np.nan), [], []
    for number, row in enumerate(tokens.tolist()):
        answer = row[: row.index(vocabulary.eos)] if vocabulary.eos in row else row
        if answer and answer[0] in levels:
            ratings[number] = levels[answer[0]]
        explanations.append(vocabulary.decode(answer[1:] if answer and answer[0] in levels else answer))
        texts.append(vocabulary.decode(answer))
    return Reviews(ratings, explanations, texts, scores)


def _next_token(
    data: ExperimentData,
    predictor: Predictor,
    queries: Sequence[Query],
    begun: Sequence[tuple[int, ...]] | None,
    tokens: np.ndarray,
) -> np.ndarray:
    """Probabilities of `tokens` among themselves: float32 [P, tokens]."""
    logs = predictor.next_token(prompt_batches(data, predictor, queries, begun=begun), tokens, len(queries))
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
