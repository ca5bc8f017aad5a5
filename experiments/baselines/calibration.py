"""Calibrates a ranker's scores to next-item probabilities, by a temperature and a uniform share fitted in
validation."""

import dataclasses

import numpy as np

from data_pipelines.corpus import VALIDATION, Corpus
from experiments.baselines.ranker import SCORES, Ranker, scored_batches

TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
EVEN = (0.02, 0.05, 0.1, 0.2, 0.5)
USERS = 2000
"""Maximum number of validation users, evenly spread; fewer for large catalogues, to have at most `SCORES` scores."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Converts scores to probabilities: softmax(temperature * log score), mixed with a uniform distribution.

    Attributes:
      temperature: factor of the logarithms of scores, or of scores that are logits, in the softmax.
      even: the share of the probability that is spread uniformly over the catalogue.
      logits: whether scores are logits; otherwise they are nonnegative (counts, shares), and their logarithms are used.
    """

    temperature: float = 1.0
    even: float = 0.1
    logits: bool = False

    def log_probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Returns the log-probabilities of all items: [M, I] -> float64 [M, I]."""
        shares_MI = softmax(self.temperature * logits_of(scores, self.logits))
        return self.mixed(shares_MI, scores.shape[1])

    def mixed(self, shares: np.ndarray, num_items: int) -> np.ndarray:
        """Mixes softmax probabilities with the uniform distribution, and returns their logarithms."""
        return np.log((1 - self.even) * shares + self.even / num_items)


def softmax(logits_MI: np.ndarray) -> np.ndarray:
    """Returns the softmax of each row, in three passes; SciPy's takes three times as long."""
    shares_MI = logits_MI - logits_MI.max(axis=1, keepdims=True)
    np.exp(shares_MI, out=shares_MI)
    shares_MI /= shares_MI.sum(axis=1, keepdims=True)
    return shares_MI


def logits_of(scores: np.ndarray, logits: bool) -> np.ndarray:
    """Returns scores that are logits, or the logarithms of other scores, in float64."""
    found = scores.astype(np.float64)
    return found if logits else np.log(np.maximum(found, np.finfo(np.float32).tiny))


def validation_sample(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Returns (users, positions) of validation interactions whose scores all fit into memory: int32 [M] each."""
    users, positions = corpus.held_out(VALIDATION)
    most = min(len(users), max(1, min(USERS, SCORES // corpus.num_items)))
    some = np.linspace(0, len(users) - 1, most).astype(int)
    return users[some], positions[some]


def calibrate(ranker: Ranker, corpus: Corpus) -> Calibration:
    """Returns the calibration with the highest likelihood of the validation interactions; without any, the default."""
    users, positions = validation_sample(corpus)
    if not len(users):
        return Calibration()
    targets_M1 = corpus.targets(users, positions)[:, None]
    batches = [(part, scores.copy()) for part, scores in scored_batches(ranker, corpus, users, positions)]
    logits = bool(min(scores.min() for _, scores in batches) < 0)
    best, likelihood = Calibration(logits=logits), -np.inf
    for temperature in TEMPERATURES:
        shares_M1 = np.empty((len(users), 1))  # of the targets only
        for part, scores in batches:
            logs_MI = logits_of(scores, logits)
            shares_M1[part] = np.take_along_axis(softmax(temperature * logs_MI), targets_M1[part], axis=1)
        for even in EVEN:
            calibration = Calibration(temperature, even, logits)
            mean = float(calibration.mixed(shares_M1, corpus.num_items).mean())
            if mean > likelihood:
                best, likelihood = calibration, mean
    return best
