"""Metrics of generated images with one value per user, computed from features of a vision tower.

Generated images are compared with the images of R other items. Distances are Euclidean.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter

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
    """Computes the per-user values for `image_metrics`; higher is better for all metrics.

    Args:
      generated_PSF: Features of the images generated for each question.
      wanted_PF: Features of the image of the item that each user interacted with.
      random_PRF, alike_PRF: Features of the images of R other items per user, drawn from all, and from those of the
        query.

    Returns:
      float64 [P] by name. The sets for precision and recall are each user's first image and all wanted images, so that
      they have equal size for any S.
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
    """Computes values of metrics for which lower is better: float64 [P] by name, whose means are the metrics."""
    return {
        "Fréchet distance": frechet_values(generated_PSF[:, 0], wanted_PF),
        "distance to wanted": _distances(generated_PSF, wanted_PF[:, None]).mean(axis=(1, 2)),
    }


def distance_metrics(distances: PerUser) -> dict[str, Callable[[Means], np.ndarray]]:
    """Returns formulas for the values of `image_distances`: means, except for the Fréchet distance.

    The Fréchet distance is moved on a logarithmic scale (the delta method for log d), so that no interval extends below
    0, however few images there are.
    """
    whole = float(distances["Fréchet distance"].mean())

    def frechet(means: Means) -> np.ndarray:
        moved = means["Fréchet distance"]
        return whole * np.exp(moved / whole - 1) if whole > 0 else np.maximum(moved, 0)

    return {**{name: itemgetter(name) for name in distances}, "Fréchet distance": frechet}


def image_metrics(scores: PerUser) -> dict[str, Callable[[Means], np.ndarray]]:
    """Returns the `IMAGE_METRICS` for which `scores`, from `image_scores`, contains values."""
    available = {*scores, "diversity"} if scores["with others"].any() else {*scores}
    return {name: formula for name, formula in IMAGE_METRICS.items() if name in available}


IMAGE_METRICS: dict[str, Callable[[Means], np.ndarray]] = {
    **{name: itemgetter(name) for name in ("closer", SAME_QUERY, "precision", "recall", "CLIP score")},
    "diversity": lambda means: means["apart from others"] / np.maximum(means["with others"], 1e-12),
    "own diversity": itemgetter("own diversity"),
}
"""All image metrics; the values of "CLIP score" come from `clip_score`."""


def closer(generated_PSF: np.ndarray, wanted_PF: np.ndarray, others_PRF: np.ndarray) -> np.ndarray:
    """Computes how often a user's generated images are closer to the wanted image than to another: float64 [P], the
    share of all S x R comparisons, in which ties count half; 1/2 by chance."""
    to_wanted_PS1 = _distances(generated_PSF, wanted_PF[:, None])
    to_others_PSR = _distances(generated_PSF, others_PRF)
    won_PSR = (to_wanted_PS1 < to_others_PSR) + 0.5 * (to_wanted_PS1 == to_others_PSR)
    return won_PSR.mean(axis=(1, 2))


def apart(generated_PSF: np.ndarray) -> np.ndarray:
    """Returns the mean distance between two images of one user, float64 [P]; raises ValueError if there is one image
    per user."""
    samples = generated_PSF.shape[1]
    if samples < 2:
        raise ValueError("distances between images of a user need at least two images per user")
    return _distances(generated_PSF, generated_PSF).sum(axis=(1, 2)) / (samples * (samples - 1))


def apart_from_others(generated_PSF: np.ndarray, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean distance of a user's images to those of others with the same query, and 1 (float64 [P] each);
    both are 0 if there is no other user. The sum of the former divided by that of the latter is the diversity of a
    query's images across users; comparing it with `apart` shows how much of it is due to the user."""
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
    """Returns 100 max(cosine, 0) of CLIP's image and query embeddings, averaged over a user's images: float64 [P]
    (arXiv:2104.08718, scaled to 100 as in common libraries)."""
    cosine_PS = np.einsum("psf,pf->ps", _unit(generated_PSF), _unit(query_PF))
    return 100 * np.maximum(cosine_PS, 0).mean(axis=1)


def sign_test(shares: np.ndarray, chance: float = 0.5) -> tuple[int, int, float]:
    """Returns (users above chance, users below, two-sided p-value of equal probability) for one share per user; users
    exactly at chance are left out."""
    above, below = int((shares > chance).sum()), int((shares < chance).sum())
    return above, below, float(scipy.stats.binomtest(above, max(above + below, 1)).pvalue)


def _distances(first_PNF: np.ndarray, second_PMF: np.ndarray) -> np.ndarray:
    """Returns the distances between each user's images, float64 [P, N, M]."""
    return np.stack([cdist(*pair) for pair in zip(first_PNF, second_PMF, strict=True)])


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
