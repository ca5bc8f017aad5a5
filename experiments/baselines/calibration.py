"""A ranker's scores as probabilities of the next item: temperature and even share by the validation users."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from data_pipelines.corpus import VALIDATION, Corpus
from experiments.baselines.ranker import SCORES, Ranker, scored_batches

TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
EVEN = (0.02, 0.05, 0.1, 0.2, 0.5)
USERS = 2000
"""So many validation users, evenly spread, are enough; fewer where the catalogue is so large that there would be more
than `SCORES` scores."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How scores become probabilities: softmax(temperature * log score), mixed with an even one.

    Attributes:
      temperature: by which logarithms of scores, or scores that are logits, are multiplied before the softmax.
      even: the share of the probability that is spread evenly over the catalogue.
      logits: whether scores are logits; counts and shares, which are not negative, are taken by their logarithms.
    """

    temperature: float = 1.0
    even: float = 0.1
    logits: bool = False

    def log_probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Of all items: [M, I] -> float64 [M, I]."""
        logs = scores.astype(np.float64)
        if not self.logits:
            logs = np.log(np.maximum(logs, np.finfo(np.float32).tiny))
        logs = self.temperature * logs
        logs -= logs.max(axis=1, keepdims=True)
        shares = np.exp(logs)
        shares /= shares.sum(axis=1, keepdims=True)
        return np.log((1 - self.even) * shares + self.even / scores.shape[1])


def validation_sample(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """(users, positions) of validation interactions, so few that the scores of all fit: int32 [M] each."""
    users, positions = corpus.held_out(VALIDATION)
    most = min(len(users), max(1, min(USERS, SCORES // corpus.num_items)))
    some = np.linspace(0, len(users) - 1, most).astype(int)
    return users[some], positions[some]


def calibrate(ranker: Ranker, corpus: Corpus) -> Calibration:
    """The calibration under which what validation users met next is most probable; without any, the default."""
    users, positions = validation_sample(corpus)
    if not len(users):
        return Calibration()
    targets = corpus.targets(users, positions)
    batches = [(part, scores.copy()) for part, scores in scored_batches(ranker, corpus, users, positions)]
    logits = bool(min(scores.min() for _, scores in batches) < 0)
    best, likelihood = Calibration(logits=logits), -np.inf
    for temperature, even in itertools.product(TEMPERATURES, EVEN):
        calibration = Calibration(temperature, even, logits)
        logs = np.empty(len(users))
        for part, scores in batches:
            logs[part] = np.take_along_axis(calibration.log_probabilities(scores), targets[part][:, None], axis=1)[:, 0]
        if logs.mean() > likelihood:
            best, likelihood = calibration, float(logs.mean())
    return best
