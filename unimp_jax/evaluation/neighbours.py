"""Improved precision and recall of a set of images (arXiv:1904.06991).

The k nearest neighbours of real images define the region of real images. Precision is the share of generated images in
this region, recall the share of real images in the corresponding region of generated images.
"""

import numpy as np
from scipy.spatial.distance import cdist

NEIGHBOURS = 3  # as in the paper
BLOCK = 512  # rows of distances held at once


def precision_and_recall(
    generated_NF: np.ndarray, real_MF: np.ndarray, k: int = NEIGHBOURS
) -> tuple[np.ndarray, np.ndarray]:
    """Returns contributions, 0 or 1, of images: (float64 [N] with mean precision; float64 [M] with mean recall). Both
    depend on the number of images, so only sets of equal size are comparable; ValueError is raised for one of no more
    than k images."""
    return lies_within(generated_NF, real_MF, k), lies_within(real_MF, generated_NF, k)


def lies_within(points_NF: np.ndarray, centres_MF: np.ndarray, k: int) -> np.ndarray:
    """Returns 1 where a point is within the distance of a centre to its k-th nearest other centre, else 0."""
    if len(centres_MF) <= k:
        raise ValueError(
            f"{len(centres_MF)} images do not have {k} neighbours each; at least {k + 1} images are needed"
        )
    points_NF, centres_MF = np.asarray(points_NF, np.float64), np.asarray(centres_MF, np.float64)
    blocks = [centres_MF[start : start + BLOCK] for start in range(0, len(centres_MF), BLOCK)]
    # Index 0 is the centre itself.
    radii_M = np.concatenate([np.partition(cdist(block, centres_MF), k, axis=1)[:, k] for block in blocks])
    parts = [points_NF[start : start + BLOCK] for start in range(0, len(points_NF), BLOCK)]
    return np.concatenate([(cdist(part, centres_MF) <= radii_M).any(axis=1) for part in parts]).astype(np.float64)
