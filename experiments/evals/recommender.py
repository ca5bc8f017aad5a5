"""Our recommendations as a ranker: the model's next-item probabilities, alone or combined with a memory.

The memory follows kNN-LM (Khandelwal et al. 2020): training counts, looked up by the items of the history, with scores
calibrated to probabilities. These are pooled with the model's, linearly or logarithmically (Genest and Zidek 1986), by
shares s that sum to 1:

    sum over k of  s_k p_k(i | history)        or, in proportion to it,        product over k of  p_k(i | history)^s_k

A linear pool ranks an item high if one distribution gives it a high probability, a logarithmic pool if all do. Counts,
shares and pool are chosen per task as those with which validation users are answered best (`TaskEval.quality`), because
the best ranking of the catalogue does not imply the best ratios of probabilities. The model's few dozen dimensions
cannot represent every pair of co-occurring items, which is exactly what the memory stores.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks import Query
from experiments.baselines.calibration import Calibration, calibrate, validation_sample
from experiments.baselines.item_knn import ItemKNN
from experiments.baselines.markov import Markov, MarkovConfig
from experiments.baselines.ranker import SCORES, Ranker, scored_batches
from experiments.data import PROMPTS_A_ROW, ExperimentData
from experiments.evals.base import OURS, TaskEval, prompt_batches, refuse_nan
from experiments.memory import Counts, ItemMemory, Pool
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.sharding import row_shards

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
POOLS: tuple[Pool, ...] = ("linear", "logarithmic")
LOG_PROBABILITIES = Calibration(temperature=1.0, even=0.0, logits=True)
DIVISIONS = (1.0, 0.7, 0.5, 0.3, 0.0)
"""Fraction of the memory's share that the first of two kinds of counts gets."""


class NextItem:
    """The model alone; its scores are next-item log-probabilities."""

    name = OURS

    def __init__(self, data: ExperimentData, predictor: Predictor):
        self._data, self._predictor = data, predictor
        self._asked: dict[bytes, np.ndarray] = {}
        """Cache of at most about `SCORES` scores: all tasks ask about the same users and positions."""

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
        # Every slot for a prompt gets the scores of the whole catalogue, so there are no more rows than are needed.
        (_, shards), rows = row_shards(self._predictor.mesh), -(-len(queries) // PROMPTS_A_ROW)
        most = self._data.config.loader.batch_size
        batches = prompt_batches(self._data.asking(min(most, -(-rows // shards) * shards)), self._predictor, queries)
        return refuse_nan(self._predictor.next_token(batches, self._data.vocabulary.items[:, 0], len(queries)))


@dataclasses.dataclass(eq=False)
class WithMemory:
    """The model combined with a memory, and the rankers that provide the memory's counts."""

    model: NextItem
    memory: ItemMemory
    rankers: Sequence[Ranker]
    name: str = f"{OURS} + memory"

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        counted = [
            (one.share, one.calibration.log_probabilities(ranker.scores(users, positions)))
            for one, ranker in zip(self.memory.counts, self.rankers, strict=True)
        ]
        return pooled(among_items(self.model.scores(users, positions)), counted, self.memory.pool)


def recommender(data: ExperimentData, predictor: Predictor, task: str) -> NextItem | WithMemory:
    """Returns the ranker for a task, with the run's memory for it, if there is one."""
    model, memory = NextItem(data, predictor), data.memory.items.get(task)
    if memory is None:
        return model
    rankers: list[Ranker] = [
        ItemKNN(data.corpus, one.item_knn) if one.item_knn else Markov(data.corpus, one.markov or MarkovConfig())
        for one in memory.counts
    ]
    return WithMemory(model, memory, rankers)


def calibration_of(ranker: Ranker, corpus: Corpus) -> Calibration:
    """Returns what turns a ranker's scores into log-probabilities, which those of our own are already."""
    return LOG_PROBABILITIES if isinstance(ranker, NextItem | WithMemory) else calibrate(ranker, corpus)


def among_items(log_p_MI: np.ndarray) -> np.ndarray:
    """Renormalises next-token log-probabilities over items, leaving out tokens that are not items."""
    return log_p_MI - np.logaddexp.reduce(log_p_MI, axis=1, keepdims=True)


def pooled(model_MI: np.ndarray, counted: Sequence[tuple[float, np.ndarray]], pool: Pool) -> np.ndarray:
    """Returns the log-probabilities of a pool of distributions over items, each with exponentials that sum to 1:
    float32 [M, I]. `counted` has (share, log-probabilities [M, I]) of those beside the model."""
    if not counted:
        return model_MI.astype(np.float32)
    shared = [(1 - sum(share for share, _ in counted), model_MI), *counted]
    if pool == "linear":
        return np.log(sum(share * np.exp(log_p_MI, dtype=np.float32) for share, log_p_MI in shared))
    log_p_MI = sum(share * log_p_MI for share, log_p_MI in shared)
    return (log_p_MI - np.log(np.exp(log_p_MI).sum(axis=1, keepdims=True))).astype(np.float32)


def remembers(data: ExperimentData) -> bool:
    """Returns whether a memory can be used: each item is one token, and the model was trained to recommend."""
    return data.vocabulary.depth == 1 and data.config.queries.mix["recommendation"] > 0


def choose_memories(
    data: ExperimentData, model: NextItem, rankers: Sequence[Ranker], tasks: Collection[TaskEval]
) -> dict[str, WithMemory]:
    """Returns, by task, the model with the memory that performs best in validation, among those of the rankers that
    only count. The memory is empty if the model alone performs best; without validation users, there are no entries."""
    moments = validation_sample(data.corpus)
    if not tasks or not len(moments[0]):
        return {}
    model_MI = among_items(scores_of(model, data, *moments))
    counting = [ranker for ranker in rankers if isinstance(ranker, ItemKNN | Markov)]
    calibrations = [calibrate(ranker, data.corpus) for ranker in counting]
    counted_kMI = [
        calibration.log_probabilities(scores_of(ranker, data, *moments)).astype(np.float32)
        for ranker, calibration in zip(counting, calibrations, strict=True)
    ]
    qualities = {one.task: one.quality(data.corpus, *moments) for one in tasks}
    highest = dict.fromkeys(qualities, -np.inf)
    best: dict[str, WithMemory] = {}
    for pool, shares in (("linear", (0.0,) * len(counting)), *itertools.product(POOLS, divided(len(counting)))):
        used = [number for number, share in enumerate(shares) if share]
        mixed_MI = pooled(model_MI, [(shares[k], counted_kMI[k]) for k in used], pool)
        counts = tuple(described(counting[k], shares[k], calibrations[k]) for k in used)
        for task, quality in qualities.items():
            if (found := quality(mixed_MI)) > highest[task]:
                highest[task] = found
                best[task] = WithMemory(model, ItemMemory(counts, pool), [counting[k] for k in used])
    return best


def divided(kinds: int) -> Iterator[tuple[float, ...]]:
    """Yields the shares of each of at most two kinds of counts; nothing if there are none."""
    of_two = [(first, 1 - first) for first in DIVISIONS]
    divisions: Sequence[tuple[float, ...]] = {0: (), 1: [(1.0,)], 2: of_two}[kinds]
    for share, division in itertools.product(SHARES[1:], divisions):
        yield tuple(share * part for part in division)


def described(ranker: ItemKNN | Markov, share: float, calibration: Calibration) -> Counts:
    """Returns the memory's description of a ranker's counts."""
    if isinstance(ranker, ItemKNN):
        return Counts(share, calibration, item_knn=ranker.config)
    return Counts(share, calibration, markov=ranker.config)


def scores_of(ranker: Ranker, data: ExperimentData, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns the scores of a `validation_sample`, which fit into memory: float32 [M, I]."""
    scores_MI = np.empty((len(users), data.corpus.num_items), np.float32)
    for part, scores in scored_batches(ranker, data.corpus, users, positions):
        scores_MI[part] = scores
    return scores_MI
