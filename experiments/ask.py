"""Each task's held-out questions put to a model, and its answers: figures for every user, from exact scores.

A recommendation is the catalogue ranked by the next token's probability, or the best of its semantic ids that a search
finds; a rating is a distribution over the levels; a selection is the most probable of the six answers that are valid;
an explanation, with the rating before it, is what beam search writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from data_pipelines.corpus import Corpus
from data_pipelines.loader import Share
from data_pipelines.tasks import Query
from data_pipelines.vocabulary import NUM_CANDIDATES
from experiments.data import ExperimentData
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.harness import Examiner, Seen
from unimp_jax.evaluation.ranking import Ranked
from unimp_jax.sharding import put_everywhere

Split = Literal["validation", "test"]
PICTURES = 64  # encoded at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What is asked: the machinery, and the parameters (trainable, frozen) that it runs with."""

    examiner: Examiner
    parameters: tuple[Any, ...]
    share: Share = Share()
    latents_ILC: jax.Array | None = None
    """Of every item's picture, where they have all been encoded (`encode_catalogue`)."""

    @property
    def encodes(self) -> bool:
        """Whether it has to be shown pictures, not only told which."""
        return self.latents_ILC is None


def encode_catalogue(data: ExperimentData, model: Model) -> Model:
    """A model that has seen every picture of the catalogue, and need not be shown one again.

    The devices of the mesh share the pictures; each then holds what was made of all.
    """
    config, graph, mesh = data.config.model, model.examiner.graph, model.examiner.mesh
    shape = (data.corpus.num_items, config.resampler.latents, config.vision.width)

    def see(latents_ILC: jax.Array, parameters: Any, items_N: jax.Array, images_NHW3: jax.Array) -> jax.Array:
        seen_NLC = nnx.merge(graph, *parameters).encode_images(images_NHW3[:, None])[:, 0]
        return latents_ILC.at[items_N].set(seen_NLC)

    everywhere = NamedSharding(mesh, PartitionSpec())
    add = jax.jit(see, donate_argnums=0, out_shardings=everywhere)
    shown = np.flatnonzero(data.writer.has_image).astype(np.int32)
    with jax.set_mesh(mesh):
        latents_ILC = jax.jit(lambda: jnp.zeros(shape, config.compute_dtype), out_shardings=everywhere)()
        for start in range(0, len(shown), PICTURES):
            items = np.resize(shown[start : start + PICTURES], PICTURES)
            images = np.stack([data.images[int(item)] for item in items])
            latents_ILC = add(latents_ILC, model.parameters, *put_everywhere(mesh, (items, images)))
    return dataclasses.replace(model, latents_ILC=latents_ILC)


def seen_items(corpus: Corpus, queries: Sequence[Query]) -> Seen:
    """What each asked user had met before the question, by the question's number."""
    return lambda number: corpus.history(queries[number].user, queries[number].position)


def evenly_spread(queries: Sequence[Query], count: int | None) -> list[Query]:
    """`count` of them in their order, or all where there are fewer; None: all."""
    count = len(queries) if count is None else min(count, len(queries))
    return [queries[len(queries) * number // count] for number in range(count)]


def ask_for_items(
    data: ExperimentData,
    model: Model,
    queries: Sequence[Query],
    k: int = 10,
    beams: int = 20,
) -> Ranked:
    """The best items for recommendation or search questions, and where among them the right ones are.

    Where each item has a token of its own, the whole catalogue is ranked exactly; semantic ids are searched for, by so
    many `beams`.
    """
    prompts = [data.writer.write(query, ask=True) for query in queries]
    targets = np.array([query.right[0] for query in queries], np.int32)
    seen = seen_items(data.corpus, queries)
    items = data.vocabulary.items
    if data.vocabulary.depth == 1:
        batches = data.questions(prompts, model.share, pictures=model.encodes)
        return model.examiner.rank_items(
            model.parameters, batches, item_tokens=items[:, 0], targets=targets, seen=seen, k=k,
            latents_ILC=model.latents_ILC,
        )  # fmt: skip
    batches = data.questions(prompts, model.share, tight=True, pictures=model.encodes)
    return model.examiner.search_items(
        model.parameters, batches, trie=data.trie, item_tokens=items, targets=targets, seen=seen, k=k, beams=beams,
        latents_ILC=model.latents_ILC,
    )  # fmt: skip


def find_items(
    data: ExperimentData, model: Model, queries: Sequence[Query], k: int, beams: int, *, keep_seen: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The best items for open questions, whatever the right ones are: (int32 [P, k], -1 where there are no more, and
    their log-probabilities, float32); with `keep_seen`, what the user has met may be among them."""
    nothing = np.empty(0, np.int32)
    seen = (lambda _: nothing) if keep_seen else seen_items(data.corpus, queries)
    prompts = [data.writer.write(query, ask=True) for query in queries]
    batches = data.questions(prompts, model.share, tight=True, pictures=model.encodes)
    return model.examiner.find(
        model.parameters, batches, len(queries), trie=data.trie, excluded=seen, k=k, beams=beams,
        latents_ILC=model.latents_ILC,
    )  # fmt: skip


def ask_for_ratings(data: ExperimentData, model: Model, queries: Sequence[Query]) -> np.ndarray:
    """The probability of each rating level for preference questions: float32 [P, levels]."""
    return _next_token(data, model, queries, [()] * len(queries), data.vocabulary.ratings)


def ask_for_selections(data: ExperimentData, model: Model, queries: Sequence[Query]) -> list[tuple[int, ...]]:
    """The most probable valid answer to each selection question: the items chosen, one or two of the three.

    Answers name candidates in ascending order and end, so the probability of one is a product of at most three next
    tokens, each among those that may follow: any candidate first; then the end or a later candidate; then the end.
    """
    selections, eos = data.vocabulary.selections, data.vocabulary.eos
    followers = [np.array([eos, *selections[first + 1 :]]) for first in range(NUM_CANDIDATES)]
    begin = np.log(_next_token(data, model, queries, [()] * len(queries), selections))
    scores: dict[tuple[int, ...], np.ndarray] = {}
    for first in range(NUM_CANDIDATES - 1):
        begun = [(int(selections[first]),)] * len(queries)
        follow = np.log(_next_token(data, model, queries, begun, followers[first]))
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


def ask_for_reviews(data: ExperimentData, model: Model, queries: Sequence[Query], config: BeamConfig) -> Reviews:
    """Rating and explanation of preference questions, as beam search over all tokens writes them."""
    vocabulary = data.vocabulary
    prompts = [data.writer.write(query, ask=True) for query in queries]
    batches = data.questions(prompts, model.share, tight=True, pictures=model.encodes)
    tokens, scores = model.examiner.answers(
        model.parameters, batches, len(prompts), config, eos=vocabulary.eos, pad=vocabulary.pad,
        latents_ILC=model.latents_ILC,
    )  # fmt: skip
    levels = dict(zip(vocabulary.ratings.tolist(), vocabulary.rating_levels, strict=True))
    ratings, explanations, texts = np.full(len(prompts), np.nan), [], []
    for number, row in enumerate(tokens.tolist()):
        answer = row[: row.index(vocabulary.eos)] if vocabulary.eos in row else row
        if answer and answer[0] in levels:
            ratings[number] = levels[answer[0]]
        explanations.append(vocabulary.decode(answer[1:] if answer and answer[0] in levels else answer))
        texts.append(vocabulary.decode(answer))
    return Reviews(ratings, explanations, texts, scores)


def _next_token(
    data: ExperimentData, model: Model, queries: Sequence[Query], begun: Sequence[tuple[int, ...]], tokens: np.ndarray
) -> np.ndarray:
    """Probabilities of `tokens` among themselves: float32 [P, tokens]."""
    prompts = [data.writer.write(query, ask=True, begun=start) for query, start in zip(queries, begun, strict=True)]
    batches = data.questions(prompts, model.share, pictures=model.encodes)
    logs = model.examiner.log_probabilities(
        model.parameters, batches, tokens, len(prompts), latents_ILC=model.latents_ILC
    )
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
