"""Metrics of generated images for each user, from features that some tower makes of them.

The images of R other items are what they are compared with. Distances are Euclidean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from scipy.spatial.distance import cdist

from unimp_jax.evaluation.frechet import frechet_values
from unimp_jax.evaluation.metrics import Means
from unimp_jax.evaluation.neighbours import precision_and_recall

PerUser = dict[str, np.ndarray]
SAME_QUERY = "closer, same query"


def image_scores(
    generated_PSF: np.ndarray,
    wanted_PF: np.ndarray,
    random_PRF: np.ndarray,
    alike_PRF: np.ndarray,
    queries: Sequence[str],
) -> PerUser:
    """What `image_metrics` makes metrics of; of all, more is better.

    Args:
      generated_PSF: of the images generated for each question.
      wanted_PF: of the image of the item that each user truly met.
      random_PRF, alike_PRF: of the images of R other items, drawn for each; among all, and among those of the query.
      queries: what each asked for.

    Returns:
      float64 [P] by name. Sets, for precision and recall, are each user's first image and all the wanted ones, so
      that they are of one size whatever S is.
    """
    precision_P, recall_P = precision_and_recall(generated_PSF[:, 0], wanted_PF)
    apart_P, shared_P = apart_from_others(generated_PSF, queries)
    scores = {
        "closer": closer(generated_PSF, wanted_PF, random_PRF),
        SAME_QUERY: closer(generated_PSF, wanted_PF, alike_PRF),
        "precision": precision_P,
        "recall": recall_P,
        "apart from others": apart_P,
        "with others": shared_P,
    }
    return scores | ({"own diversity": apart(generated_PSF)} if generated_PSF.shape[1] > 1 else {})


def image_distances(generated_PSF: np.ndarray, wanted_PF: np.ndarray) -> PerUser:
    """Metrics of which less is better: float64 [P] by name, whose means they are."""
    return {
        "Fréchet distance": frechet_values(generated_PSF[:, 0], wanted_PF),
        "distance to wanted": _distances(generated_PSF, wanted_PF[:, None]).mean(axis=(1, 2)),
    }


def distance_metrics(distances: PerUser) -> dict[str, Callable[[Means], np.ndarray]]:
    """Means of what `image_distances` made, but that the Fréchet distance moves on the scale of logarithms (the delta
    method for log d): no interval of a distance reaches below 0, however few images there are."""
    whole = float(distances["Fréchet distance"].mean())

    def frechet(means: Means) -> np.ndarray:
        moved = means["Fréchet distance"]
        return whole * np.exp(moved / whole - 1) if whole > 0 else np.maximum(moved, 0)

    return {**{name: _mean(name) for name in distances}, "Fréchet distance": frechet}


def image_metrics(scores: PerUser) -> dict[str, Callable[[Means], np.ndarray]]:
    """Those of `IMAGE_METRICS` that `scores`, made by `image_scores`, have something for."""
    there = {*scores, "diversity"} if scores["with others"].any() else {*scores}
    return {name: formula for name, formula in IMAGE_METRICS.items() if name in there}


def _mean(name: str) -> Callable[[Means], np.ndarray]:
    return lambda means: means[name]


IMAGE_METRICS: dict[str, Callable[[Means], np.ndarray]] = {
    "closer": _mean("closer"),
    SAME_QUERY: _mean(SAME_QUERY),
    "precision": _mean("precision"),
    "recall": _mean("recall"),
    "CLIP score": _mean("CLIP score"),
    "diversity": lambda means: means["apart from others"] / np.maximum(means["with others"], 1e-12),
    "own diversity": _mean("own diversity"),
}
"""All there are; the score of a CLIP comes from `clip_score`."""


def closer(generated_PSF: np.ndarray, wanted_PF: np.ndarray, others_PRF: np.ndarray) -> np.ndarray:
    """How often a user's generated images lie closer to the wanted one than to another, ties as half.

    Returns:
      float64 [P], the share of all S x R comparisons; by chance 1/2.
    """
    to_wanted_PS1 = _distances(generated_PSF, wanted_PF[:, None])
    to_others_PSR = _distances(generated_PSF, others_PRF)
    won_PSR = (to_wanted_PS1 < to_others_PSR) + 0.5 * (to_wanted_PS1 == to_others_PSR)
    return won_PSR.mean(axis=(1, 2))


def apart(generated_PSF: np.ndarray) -> np.ndarray:
    """The mean distance between two images of one user: float64 [P].

    Raises:
      ValueError: there is but one.
    """
    samples = generated_PSF.shape[1]
    if samples < 2:
        raise ValueError("one image a user has no distance to another: two or more are needed")
    return _distances(generated_PSF, generated_PSF).sum(axis=(1, 2)) / (samples * (samples - 1))


def apart_from_others(generated_PSF: np.ndarray, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """How far a user's images are from those of others with the same query, on average, and 1 (float64 [P] each); 0
    and 0 where there is no other. The sum of the former over that of the latter is the diversity of a query's images
    across users; compared with `apart`, it tells how much is due to who asks."""
    total_P, shared_P = np.zeros(len(queries)), np.zeros(len(queries))
    for query in dict.fromkeys(queries):
        users = np.array([user for user, other in enumerate(queries) if other == query])
        if len(users) < 2:
            continue
        images = generated_PSF[users].reshape(-1, generated_PSF.shape[-1])
        for user in users:
            own_SF = generated_PSF[user]
            within = cdist(own_SF, own_SF).sum()
            total_P[user] = (cdist(own_SF, images).sum() - within) / (len(own_SF) ** 2 * (len(users) - 1))
        shared_P[users] = 1
    return total_P, shared_P


def clip_score(generated_PSF: np.ndarray, query_PF: np.ndarray) -> np.ndarray:
    """100 max(cosine, 0) of CLIP's embeddings of image and query, averaged over a user's images: float64 [P]
    (arXiv:2104.08718, scaled to 100 as libraries do)."""
    cosine_PS = np.einsum("psf,pf->ps", _unit(generated_PSF), _unit(query_PF))
    return 100 * np.maximum(cosine_PS, 0).mean(axis=1)


def sign_test(shares: np.ndarray, chance: float = 0.5) -> tuple[int, int, float]:
    """(users above chance, users below, the two-sided p-value if both were as likely), of one share a user; those
    exactly at chance are left out."""
    above, below = int((shares > chance).sum()), int((shares < chance).sum())
    return above, below, float(scipy.stats.binomtest(above, max(above + below, 1)).pvalue)


def _distances(first_PNF: np.ndarray, second_PMF: np.ndarray) -> np.ndarray:
    """Of each user's images: float64 [P, N, M]."""
    return np.stack([cdist(*pair) for pair in zip(first_PNF, second_PMF, strict=True)])


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
