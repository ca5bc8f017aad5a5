"""Our own recommendations as a ranker: the model's probabilities of what comes next, alone or beside a memory.

A memory is what kNN-LM calls one (Khandelwal et al. 2020): counts of training, looked up at the items of the history.
The probability that item i comes next is then

    (1 - share) * p_model(i | history) + share * p_memory(i | history)

where p_memory are the calibrated scores of item-kNN or of the Markov chain. Which of them, and the share, are those
with which validation users are answered best (`TaskEval.quality`), for each task apart: what ranks the catalogue best
is not what says best how much more probable one item is than another. The model's few dozen dimensions cannot hold
every pair of items that was met together; the memory holds nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from data_pipelines.tasks import Query
from experiments.baselines.calibration import calibrate, validation_sample
from experiments.baselines.item_knn import ItemKNN
from experiments.baselines.markov import Markov
from experiments.baselines.ranker import SCORES, Ranker, scored_batches
from experiments.data import ExperimentData
from experiments.evals.base import OURS, TaskEval, prompt_batches
from experiments.memory import ItemMemory
from unimp_jax.evaluation.predictor import Predictor

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class NextItem:
    """The model alone; its scores are log-probabilities of each item to come next."""

    name = OURS

    def __init__(self, data: ExperimentData, predictor: Predictor):
        self._data, self._predictor = data, predictor
        self._asked: dict[bytes, np.ndarray] = {}
        """What was answered before, of so many users that all fit: every task asks about the same moments."""

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        moments = np.stack([users, positions]).tobytes()
        if moments not in self._asked:
            if sum(scores.size for scores in self._asked.values()) > SCORES:
                self._asked.clear()
            self._asked[moments] = self._ask(users, positions)
        return self._asked[moments]

    def _ask(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        pairs = zip(users.tolist(), positions.tolist(), strict=True)
        queries = [Query("recommendation", user, position, ()) for user, position in pairs]
        batches = prompt_batches(self._data, self._predictor, queries)
        return self._predictor.next_token(batches, self._data.vocabulary.items[:, 0], len(queries))


@dataclasses.dataclass(eq=False)
class WithMemory:
    """The model beside a memory, and the counts of the memory."""

    model: NextItem
    memory: ItemMemory
    counts: Ranker
    name: str = f"{OURS} + memory"

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        known_MI = self.memory.calibration.log_probabilities(self.counts.scores(users, positions))
        return interpolated(self.model.scores(users, positions), known_MI, self.memory.share)


def ranker_of(data: ExperimentData, memory: ItemMemory) -> Ranker:
    """The counts of a memory, of the training interactions of a corpus."""
    if memory.item_knn is not None:
        return ItemKNN(data.corpus, memory.item_knn)
    assert memory.markov is not None  # one of the two is given
    return Markov(data.corpus, memory.markov)


def recommender(data: ExperimentData, predictor: Predictor, task: str) -> NextItem | WithMemory:
    """What answers a task: with the memory that the run has for it, if any."""
    model, memory = NextItem(data, predictor), data.memory.items.get(task)
    return model if memory is None else WithMemory(model, memory, ranker_of(data, memory))


def interpolated(model_MI: np.ndarray, memory_MI: np.ndarray, share: float) -> np.ndarray:
    """Logarithms of the mixture of two distributions over items: float32 [M, I].

    Args:
      model_MI: log-probabilities; what the model gives to tokens that are no items is shared out among those that are.
      memory_MI: log-probabilities, which sum to 1 over items.
    """
    model_MI = model_MI - np.logaddexp.reduce(model_MI, axis=1, keepdims=True)
    if not share:
        return model_MI.astype(np.float32)
    return np.logaddexp(np.log1p(-share) + model_MI, np.log(share) + memory_MI).astype(np.float32)


def remembers(data: ExperimentData) -> bool:
    """Whether a memory can stand beside the model: each item is one token, and it has learnt to recommend."""
    return data.vocabulary.depth == 1 and data.config.queries.mix["recommendation"] > 0


def choose_memories(
    data: ExperimentData, model: NextItem, rankers: Sequence[Ranker], tasks: Collection[TaskEval]
) -> dict[str, WithMemory]:
    """For each task by name, the model with that memory, among the rankers that only count, which validates best; one
    with a share of 0 where the model alone does. There is none where nobody validates."""
    moments = validation_sample(data.corpus)
    if not len(moments[0]):
        return {}
    model_MI = scores_of(model, data, *moments)
    model_MI -= np.logaddexp.reduce(model_MI, axis=1, keepdims=True)
    qualities = {one.task: one.quality(data.corpus, *moments) for one in tasks}
    highest = dict.fromkeys(qualities, -np.inf)
    best: dict[str, WithMemory] = {}
    for ranker in rankers:
        if not isinstance(ranker, ItemKNN | Markov):
            continue
        calibration = calibrate(ranker, data.corpus)
        memory_MI = calibration.log_probabilities(scores_of(ranker, data, *moments)).astype(np.float32)
        for share in SHARES:
            mixed_MI = interpolated(model_MI, memory_MI, share)
            if isinstance(ranker, ItemKNN):
                memory = ItemMemory(share, calibration, item_knn=ranker.config)
            else:
                memory = ItemMemory(share, calibration, markov=ranker.config)
            for task, quality in qualities.items():
                if (found := quality(mixed_MI)) > highest[task]:
                    highest[task], best[task] = found, WithMemory(model, memory, ranker)
    return best


def scores_of(ranker: Ranker, data: ExperimentData, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float32 [M, I], of so many users that all fit (`validation_sample`)."""
    scores_MI = np.empty((len(users), data.corpus.num_items), np.float32)
    for part, scores in scored_batches(ranker, data.corpus, users, positions):
        scores_MI[part] = scores
    return scores_MI
