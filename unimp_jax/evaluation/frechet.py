"""The Fréchet distance between two sets of features, and what each of their pairs adds to it.

Taken as normal distributions with means m and covariances S, two sets are |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))
apart (Dowson and Landau 1982); of Inception's features that is the FID (arXiv:1706.08500). No root of a product of
covariances is taken here, whose smallest eigenvalues rounding turns negative. With centred features over the root of
n - 1 parted into Q R, S = R^T R, and tr (S1 S2)^(1/2) is the sum of the singular values of R1 R2^T. That also holds,
exactly, where there are fewer images than features.

The distance is biased upwards in small sets (arXiv:1911.07023), so that only sets of one size compare.
"""

from __future__ import annotations

import numpy as np


def frechet_values(first_PF: np.ndarray, second_PF: np.ndarray) -> np.ndarray:
    """One value a pair, float64 [P], whose mean is the distance between all firsts and all seconds.

    A value tells how the distance moves with the weight of its pair (the first derivative, by both sets' means and
    covariances), so that a mean's interval and tests are the distance's (the delta method). They are too narrow where
    there are not many more images than features.

    Raises:
      ValueError: the sets are not of as many, or are too small, a feature is no finite number, or their widths differ.
    """
    if len(first_PF) != len(second_PF):
        raise ValueError(f"{len(first_PF)} images against {len(second_PF)}: pairs are needed")
    (mean1_F, centred1_PF, q1_PK, r1_KF), (mean2_F, centred2_PF, q2_PK, r2_KF) = map(_spread, (first_PF, second_PF))
    if len(mean1_F) != len(mean2_F):
        raise ValueError(f"features are {len(mean1_F)} and {len(mean2_F)} wide: of one tower they are alike")
    gap_F, count = mean1_F - mean2_F, len(first_PF)
    u_KL, singular_L, vt_LK = np.linalg.svd(r1_KF @ r2_KF.T, full_matrices=False)
    moved_P = (centred1_PF - centred2_PF) @ gap_F
    spread_P = (centred1_PF**2).sum(axis=1) + (centred2_PF**2).sum(axis=1)
    # The optimal transport T from one distribution to the other gives x^T T x = (n - 1) sum of s (Q U)^2.
    shared_P = ((q1_PK @ u_KL) ** 2 + (q2_PK @ vt_LK.T) ** 2) @ singular_L
    return gap_F @ gap_F + 2 * moved_P + count * (spread_P / (count - 1) - shared_P)


def _spread(features_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(mean [F], centred [N, F], q [N, K], r [K, F]): root (n - 1) q r is what is centred."""
    features_NF = np.asarray(features_NF, np.float64)
    if features_NF.ndim != 2 or len(features_NF) < 2:
        raise ValueError(f"features are of shape {features_NF.shape}: two or more images' are needed")
    if not np.isfinite(features_NF).all():
        raise ValueError("a feature is no finite number")
    mean_F = features_NF.mean(axis=0)
    centred_NF = features_NF - mean_F
    return mean_F, centred_NF, *np.linalg.qr(centred_NF / (len(centred_NF) - 1) ** 0.5)
