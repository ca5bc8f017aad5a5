"""Metrics with one value per user, from which all means, intervals and comparisons are computed.

Each function returns arrays by name with one value per user; `unimp_jax.evaluation.bootstrap` turns them into metrics.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

CUTOFFS = (3, 5, 10)


def ranking_metrics(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """Computes HR@k, NDCG@k and MRR@k of questions with one right answer each.

    For a right item at rank r <= k, HR@k is 1, NDCG@k is 1 / log2(1 + r) (the ideal gain is 1) and MRR@k is 1 / r;
    beyond k all three are 0. A tied rank such as 10.5 is beyond 10.

    Args:
      ranks: floating [M], 1 is best.

    Returns:
      float64 [M] by name.

    Raises:
      ValueError: A rank is NaN or below 1.
    """
    ranks = np.asarray(ranks, np.float64)
    broken = np.isnan(ranks)
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of {ranks.size} ranks are NaN: the model computed NaN scores, or did not score these "
            "queries"
        )
    if (ranks < 1).any():
        raise ValueError(f"rank {ranks.min()} is below 1, the best possible rank")
    gains = {"HR": np.ones_like(ranks), "NDCG": 1 / np.log2(1 + ranks), "MRR": 1 / ranks}
    return {f"{name}@{k}": np.where(ranks <= k, gain, 0.0) for name, gain in gains.items() for k in cutoffs}


def rating_errors(predicted: np.ndarray, actual: np.ndarray) -> dict[str, np.ndarray]:
    """Computes squared and absolute errors in stars, float64 [M], for RMSE and MAE (`RATING_METRICS`).

    Raises:
      ValueError: A rating is not finite; an answer that cannot be parsed is not a rating.
    """
    predicted, actual = np.asarray(predicted, np.float64), np.asarray(actual, np.float64)
    if predicted.shape != actual.shape:
        raise ValueError(
            f"predicted ratings have shape {predicted.shape}, actual ratings {actual.shape}; the shapes must be equal"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(actual).all()):
        raise ValueError("a rating is not finite; leave out answers that cannot be parsed as a rating")
    error = predicted - actual
    return {"squared": error**2, "absolute": np.abs(error)}


def selection_counts(chosen: Sequence[Collection[int]], right: Sequence[Collection[int]]) -> dict[str, np.ndarray]:
    """Counts hits, chosen items and right items, float64 [M], from which `SELECTION_METRICS` derives micro metrics.

    Micro-averaging sums counts over users before dividing, so a user with two right items has twice the weight.
    """
    pairs = [(set(one), set(other)) for one, other in zip(chosen, right, strict=True)]
    return {
        "hits": np.array([len(one & other) for one, other in pairs], np.float64),
        "chosen": np.array([len(one) for one, _ in pairs], np.float64),
        "right": np.array([len(other) for _, other in pairs], np.float64),
    }


Means = dict[str, np.ndarray]

RATING_METRICS: dict[str, Callable[[Means], np.ndarray]] = {
    "RMSE": lambda means: np.sqrt(means["squared"]),
    "MAE": lambda means: means["absolute"],
}
SELECTION_METRICS: dict[str, Callable[[Means], np.ndarray]] = {
    "recall": lambda means: _ratio(means["hits"], means["right"]),
    "precision": lambda means: _ratio(means["hits"], means["chosen"]),
    "F1": lambda means: _ratio(2 * means["hits"], means["chosen"] + means["right"]),
}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below, and 0 where below is 0."""
    return np.divide(above, below, out=np.zeros_like(above, np.float64), where=np.asarray(below) > 0)
