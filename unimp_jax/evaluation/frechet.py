"""The Fréchet distance between two sets of features, and the contribution of each pair.

For normal distributions with means m and covariances S, the distance is |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))
(Dowson and Landau 1982); for features of Inception it is the FID (arXiv:1706.08500). The root of a product of
covariances, whose smallest eigenvalues become negative by rounding, is avoided: if the centred features divided by the
root of n - 1 have the decomposition Q R, then S = R^T R, and tr (S1 S2)^(1/2) is the sum of the singular values of R1
R2^T. This also holds exactly if there are fewer images than features.

The distance is biased upwards for small sets (arXiv:1911.07023), so only sets of equal size are comparable.
"""

import numpy as np


def frechet_values(first_PF: np.ndarray, second_PF: np.ndarray) -> np.ndarray:
    """Returns one value per pair, float64 [P], whose mean is the distance between all firsts and all seconds.

    A value says how the distance changes with the weight of its pair (the first derivative, through the means and
    covariances of both sets), so intervals and tests of the mean apply to the distance (the delta method). They are too
    narrow unless there are many more images than features. Raises ValueError if the sets differ in size or are too
    small, a feature is not finite, or their widths differ.
    """
    if len(first_PF) != len(second_PF):
        raise ValueError(
            f"{len(first_PF)} images are compared with {len(second_PF)}; the images must be paired, so both "
            "counts must be equal"
        )
    (mean1_F, centred1_PF, q1_PK, r1_KF), (mean2_F, centred2_PF, q2_PK, r2_KF) = map(_spread, (first_PF, second_PF))
    if len(mean1_F) != len(mean2_F):
        raise ValueError(
            f"features have {len(mean1_F)} and {len(mean2_F)} dimensions; both must come from the same feature "
            "extractor"
        )
    gap_F, count = mean1_F - mean2_F, len(first_PF)
    u_KL, singular_L, vt_LK = np.linalg.svd(r1_KF @ r2_KF.T, full_matrices=False)
    moved_P = (centred1_PF - centred2_PF) @ gap_F
    spread_P = (centred1_PF**2).sum(axis=1) + (centred2_PF**2).sum(axis=1)
    # The optimal transport T from one distribution to the other gives x^T T x = (n - 1) sum of s (Q U)^2.
    shared_P = ((q1_PK @ u_KL) ** 2 + (q2_PK @ vt_LK.T) ** 2) @ singular_L
    return gap_F @ gap_F + 2 * moved_P + count * (spread_P / (count - 1) - shared_P)


def _spread(features_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean [F], centred [N, F], q [N, K], r [K, F]), where root (n - 1) q r equals the centred features."""
    features_NF = np.asarray(features_NF, np.float64)
    if features_NF.ndim != 2 or len(features_NF) < 2:
        raise ValueError(
            f"features have shape {features_NF.shape}; expected [images, features] with at least two images"
        )
    if not np.isfinite(features_NF).all():
        raise ValueError("a feature is not finite")
    mean_F = features_NF.mean(axis=0)
    centred_NF = features_NF - mean_F
    return mean_F, centred_NF, *np.linalg.qr(centred_NF / (len(centred_NF) - 1) ** 0.5)
