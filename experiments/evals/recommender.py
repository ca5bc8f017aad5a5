"""Our own recommendations as a ranker: the model's probabilities of what comes next, alone or beside a memory.

A memory is what kNN-LM calls one (Khandelwal et al. 2020): counts of training, looked up at the items of the history.
The probability that item i comes next is then

    (1 - share) * p_model(i | history) + share * p_memory(i | history)

where p_memory are the calibrated scores of item-kNN or of the Markov chain. Which of them, and the share, are those
with the highest NDCG@10, seen items filtered, on validation users. The model's few dozen dimensions cannot hold every
pair of items that was met together; the memory holds nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from data_pipelines.tasks import Query
from experiments.baselines.calibration import calibrate, validation_sample
from experiments.baselines.item_knn import ItemKNN
from experiments.baselines.markov import Markov
from experiments.baselines.ranker import Ranker, scored_batches
from experiments.data import ExperimentData
from experiments.evals.base import OURS, prompt_batches
from experiments.memory import ItemMemory
from unimp_jax.evaluation.metrics import ranking_metrics
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.evaluation.ranking import ranks, seen_bitmap

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class NextItem:
    """The model alone; its scores are log-probabilities of each item to come next."""

    name = OURS

    def __init__(self, data: ExperimentData, predictor: Predictor):
        self._data, self._predictor = data, predictor

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        pairs = zip(users.tolist(), positions.tolist(), strict=True)
        queries = [Query("recommendation", user, position, ()) for user, position in pairs]
        batches = prompt_batches(self._data, self._predictor, queries)
        return self._predictor.next_token(batches, self._data.vocabulary.items[:, 0], len(queries))


class WithMemory(NextItem):
    """The model beside a memory."""

    name = f"{OURS} + memory"

    def __init__(self, data: ExperimentData, predictor: Predictor, memory: ItemMemory, ranker: Ranker | None = None):
        """`ranker` spares the counting where that of the memory is there."""
        super().__init__(data, predictor)
        self.memory, self._ranker = memory, ranker or ranker_of(data, memory)

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        known = self.memory.calibration.log_probabilities(self._ranker.scores(users, positions))
        return interpolated(super().scores(users, positions), known, self.memory.share)


def ranker_of(data: ExperimentData, memory: ItemMemory) -> Ranker:
    """The counts of a memory, of the training interactions of a corpus."""
    if memory.item_knn is not None:
        return ItemKNN(data.corpus, memory.item_knn)
    assert memory.markov is not None  # one of the two is given
    return Markov(data.corpus, memory.markov)


def recommender(data: ExperimentData, predictor: Predictor) -> NextItem:
    """What answers: with the memory of the run, where it has one."""
    memory = data.memory.items
    return NextItem(data, predictor) if memory is None else WithMemory(data, predictor, memory)


def interpolated(model_MI: np.ndarray, memory_MI: np.ndarray, share: float) -> np.ndarray:
    """Logarithms of the mixture of two distributions over items: float32 [M, I].

    Args:
      model_MI: log-probabilities; what the model gives to tokens that are no items is shared out among those that are.
      memory_MI: log-probabilities, which sum to 1 over items.
    """
    model_MI = model_MI - np.logaddexp.reduce(model_MI, axis=1, keepdims=True)
    return np.logaddexp(np.log1p(-share) + model_MI, np.log(share) + memory_MI).astype(np.float32)


def remembers(data: ExperimentData) -> bool:
    """Whether a memory can stand beside the model: each item is one token, and it has learnt to recommend."""
    return data.vocabulary.depth == 1 and data.config.queries.mix["recommendation"] > 0


def choose_memory(data: ExperimentData, predictor: Predictor, rankers: Sequence[Ranker]) -> WithMemory | None:
    """The model with that memory, among the rankers that only count, which validates best; None: nobody validates."""
    users, positions = validation_sample(data.corpus)
    if not len(users):
        return None
    targets = data.corpus.targets(users, positions)
    moments = zip(users.tolist(), positions.tolist(), strict=True)
    seen = seen_bitmap([data.corpus.history(*moment) for moment in moments], data.corpus.num_items)
    model_MI = scores_of(NextItem(data, predictor), data, users, positions)
    best, highest = None, -np.inf
    for ranker in rankers:
        if not isinstance(ranker, ItemKNN | Markov):
            continue
        calibration = calibrate(ranker, data.corpus)
        memory_MI = calibration.log_probabilities(scores_of(ranker, data, users, positions)).astype(np.float32)
        for share in SHARES:
            _, filtered = jax.device_get(ranks(interpolated(model_MI, memory_MI, share), targets, seen))
            score = float(ranking_metrics(filtered)["NDCG@10"].mean())
            if score > highest:
                if isinstance(ranker, ItemKNN):
                    memory = ItemMemory(share, calibration, item_knn=ranker.config)
                else:
                    memory = ItemMemory(share, calibration, markov=ranker.config)
                best, highest = WithMemory(data, predictor, memory, ranker), score
    return best


def scores_of(ranker: Ranker, data: ExperimentData, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float32 [M, I], of so many users that all fit (`validation_sample`)."""
    scores_MI = np.empty((len(users), data.corpus.num_items), np.float32)
    for part, scores in scored_batches(ranker, data.corpus, users, positions):
        scores_MI[part] = scores
    return scores_MI
