"""Residual k-means for semantic ids, as in QARM (arXiv:2411.11739) and OneRec (arXiv:2502.18965).

With r_0 the features and E_l the centres that k-means finds for r_l, an item's code and its next residual are c_l =
argmin_k |r_l - E_l[k]|^2 and r_(l+1) = r_l - E_l[c_l].
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unimp_jax.semantic_ids.metrics import unexplained

CHUNK = 16384  # points whose distances to all centres are held at once
Arrays = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Quantised:
    """Points, each approximated by the sum over levels of the codewords of its codes."""

    codes: np.ndarray  # int32 [I, L]
    codebooks: np.ndarray  # float32 [L, K, D]
    points: np.ndarray  # float32 [I, D]: features, or latents of an autoencoder
    errors: tuple[float, ...]  # fraction of the features' variance that the first 1, 2, … levels do not explain
    losses: np.ndarray | None = None  # float32 [steps, 2]: an autoencoder's reconstruction and codebook terms


def residual_kmeans(features: np.ndarray, levels: int, codes: int, *, iterations: int = 50, seed: int = 0) -> Quantised:
    """Returns codes for all items; with fewer distinct items than codes, some codes stay unused.

    Args:
      features: float32 [I, F], on similar scales.
      codes: Number of centres per level.
      iterations: Maximum number of Lloyd's iterations per level; fewer if the centres stop moving.

    Raises:
      ValueError: Features do not have two axes, are empty, or are not all finite.
    """
    points_IF = checked(features)
    residual_IF, found, codebooks, errors = points_IF, list[np.ndarray](), list[np.ndarray](), list[float]()
    for key in jax.random.split(jax.random.key(seed), levels):
        placed_IF = jnp.asarray(residual_IF)
        start_KF = seed_centres(placed_IF, key, codes=codes)
        centres_KF, codes_I = jax.device_get(lloyd(placed_IF, start_KF, iterations=iterations))
        residual_IF = residual_IF - centres_KF[codes_I]
        found.append(codes_I)
        codebooks.append(centres_KF)
        errors.append(unexplained(points_IF, np.square(residual_IF).sum(axis=1)))
    return Quantised(np.stack(found, axis=1), np.stack(codebooks), points_IF, tuple(errors))


def checked(features: np.ndarray) -> np.ndarray:
    """Returns features as float32 [I, F]; raises like `residual_kmeans`."""
    x_IF = np.asarray(features, np.float32)
    if x_IF.ndim != 2 or not x_IF.size or not np.isfinite(x_IF).all():
        raise ValueError(f"features have shape {x_IF.shape}; expected [items, features], not empty and all finite")
    return x_IF


def nearest(points_NF: jax.Array, centres_KF: jax.Array) -> jax.Array:
    """Returns the nearest centre of each point, ties by the lowest index: int32 [N]."""
    products_NK = jnp.matmul(points_NF, centres_KF.T, precision="highest")
    return jnp.argmin(jnp.square(centres_KF).sum(axis=1) - 2 * products_NK, axis=1).astype(jnp.int32)


@jax.jit(static_argnames="codes")
def seed_centres(points_IF: jax.Array, key: jax.Array, *, codes: int) -> jax.Array:
    """k-means++ (Arthur & Vassilvitskii 2007, section 2.2): returns points, float32 [codes, F], repeated if too few."""

    def draw(k: jax.Array, state: Arrays) -> Arrays:
        centres_KF, distances_I = state
        drawn_F = points_IF[jax.random.categorical(jax.random.fold_in(key, k), jnp.log(distances_I))]
        distances_I = jnp.minimum(distances_I, jnp.square(points_IF - drawn_F).sum(axis=1))
        return centres_KF.at[k].set(drawn_F), distances_I

    first_F = points_IF[jax.random.randint(key, (), 0, len(points_IF))]
    start = (jnp.tile(first_F, (codes, 1)), jnp.square(points_IF - first_F).sum(axis=1))
    return jax.lax.fori_loop(1, codes, draw, start)[0]


@jax.jit(static_argnames=("iterations", "chunk"))
def lloyd(points_IF: jax.Array, centres_KF: jax.Array, *, iterations: int, chunk: int = CHUNK) -> Arrays:
    """Runs Lloyd's iterations from given centres, float32, until convergence or for `iterations`; returns (centres,
    float32 [K, F]; the nearest of them for each point, int32 [I]). Centres without points move to the points that are
    farthest from their own centres, if any point differs from its own."""
    num_points, num_codes, size = len(points_IF), len(centres_KF), min(chunk, len(points_IF))
    points_CNF = jnp.pad(points_IF, ((0, -num_points % size), (0, 0))).reshape(-1, size, points_IF.shape[1])
    real_CN = jnp.arange(points_CNF.shape[0] * size).reshape(-1, size) < num_points
    negligible = 1e-9 * jnp.square(points_IF).sum(axis=1).mean()

    def iterate(state: Arrays) -> Arrays:
        number, centres_KF, _ = state

        def add(total: Arrays, part: Arrays) -> tuple[Arrays, jax.Array]:
            points_NF, real_N = part
            codes_N = nearest(points_NF, centres_KF)
            # A product, because accelerators add scattered rows in no fixed order.
            member_NK = jax.nn.one_hot(codes_N, num_codes) * real_N[:, None]
            sums_KF = total[0] + jnp.matmul(member_NK.T, points_NF, precision="highest")
            distances_N = jnp.square(points_NF - centres_KF[codes_N]).sum(axis=1)
            return (sums_KF, total[1] + member_NK.sum(axis=0)), distances_N

        nothing = (jnp.zeros_like(centres_KF), jnp.zeros(num_codes))
        (sums_KF, counts_K), distances_CN = jax.lax.scan(add, nothing, (points_CNF, real_CN))
        means_KF = jnp.where(counts_K[:, None] > 0, sums_KF / jnp.maximum(counts_K, 1)[:, None], centres_KF)
        farthest, places = jax.lax.top_k(distances_CN.reshape(-1)[:num_points], min(num_codes, num_points))
        order_K = jnp.cumsum(counts_K == 0) - 1
        moves_K = (counts_K == 0) & (order_K < len(places)) & (farthest[order_K] > negligible)
        new_KF = jnp.where(moves_K[:, None], points_IF[places[order_K]], means_KF)
        return number + 1, new_KF, jnp.any(new_KF != centres_KF)

    start = (jnp.int32(0), centres_KF, jnp.array(True))
    _, centres_KF, _ = jax.lax.while_loop(lambda state: (state[0] < iterations) & state[2], iterate, start)
    codes_CN = jax.lax.map(lambda points_NF: nearest(points_NF, centres_KF), points_CNF)
    return centres_KF, codes_CN.reshape(-1)[:num_points]
