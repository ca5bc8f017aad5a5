"""RQ-VAE: quantisation and gradients against NumPy, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unimp_jax.semantic_ids.rq_vae import RQVAE, RQVAEConfig, make_step, quantise, revive, train_rq_vae

BETA = 0.25
SMALL = RQVAEConfig(hidden=(32,), latent=4, steps=200, batch_size=64, revive_every=20)


def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 12))[rng.integers(0, 20, 150)] + 0.3 * rng.normal(size=(150, 12))


def latents_and_codebooks() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(3, 7, 4)).astype(np.float32)


def test_quantisation_is_that_of_a_plain_loop() -> None:
    latents_BD, codebooks_LKD = latents_and_codebooks()
    codes_LB, residuals_LBD, sums_LBD, loss = jax.jit(quantise)(latents_BD, codebooks_LKD, BETA)
    total = 0.0
    for b, latent_D in enumerate(latents_BD):
        residual_D = latent_D.copy()
        for level, codebook_KD in enumerate(codebooks_LKD):
            np.testing.assert_allclose(residuals_LBD[level, b], residual_D, atol=1e-5)
            code = min(range(7), key=lambda k, r=residual_D, book=codebook_KD: ((r - book[k]) ** 2).sum())
            assert codes_LB[level, b] == code
            residual_D = residual_D - codebook_KD[code]
            np.testing.assert_allclose(sums_LBD[level, b], latent_D - residual_D, atol=1e-5)
            total += (1 + BETA) * (residual_D**2).sum() / len(latents_BD)
    assert float(loss) == pytest.approx(total, rel=1e-5)


def test_gradients_are_those_written_by_hand() -> None:
    latents_BD, codebooks_LKD = latents_and_codebooks()
    slope_BD = np.random.default_rng(2).normal(size=latents_BD.shape).astype(np.float32)

    def cost(latents_BD: jax.Array, codebooks_LKD: jax.Array) -> jax.Array:
        _, _, sums_LBD, loss = quantise(latents_BD, codebooks_LKD, BETA)
        return (slope_BD * sums_LBD[-1]).sum() + loss

    of_latents_BD, of_codebooks_LKD = jax.jit(jax.grad(cost, argnums=(0, 1)))(latents_BD, codebooks_LKD)
    by_latents_BD, by_codebooks_LKD = slope_BD.copy(), np.zeros_like(codebooks_LKD)
    for b, residual_D in enumerate(latents_BD):
        for level, codebook_KD in enumerate(codebooks_LKD):
            code = np.square(residual_D - codebook_KD).sum(axis=1).argmin()
            residual_D = residual_D - codebook_KD[code]
            by_latents_BD[b] += 2 * BETA * residual_D / len(latents_BD)
            by_codebooks_LKD[level, code] -= 2 * residual_D / len(latents_BD)
    np.testing.assert_allclose(of_latents_BD, by_latents_BD, atol=1e-5)
    np.testing.assert_allclose(of_codebooks_LKD, by_codebooks_LKD, atol=1e-5)


def test_unused_codewords_become_residuals_of_their_level() -> None:
    latents_BD, codebooks_LKD = latents_and_codebooks()
    residuals_LBD = np.stack([latents_BD, latents_BD + 10, latents_BD + 20])
    used_LK = np.random.default_rng(3).random((3, 7)) < 0.5
    new_LKD = np.asarray(revive(codebooks_LKD, jnp.asarray(used_LK), jnp.asarray(residuals_LBD), jax.random.key(0)))
    np.testing.assert_array_equal(new_LKD[used_LK], codebooks_LKD[used_LK])
    for level, k in np.argwhere(~used_LK):
        assert (residuals_LBD[level] == new_LKD[level, k]).all(axis=1).any()


def test_a_step_revives_what_none_of_the_last_steps_used() -> None:
    config = RQVAEConfig(hidden=(8,), latent=4, steps=100, batch_size=16, revive_every=3)
    model = RQVAE(12, config, 1, 3, nnx.Rngs(0))
    model.codebooks[...] = jnp.array([[[0.0] * 4, [1e3] * 4, [-1e3] * 4]])
    graph, parameters = nnx.split(model)
    optimizer = optax.adam(1e-3)
    state, used_LK, step = optimizer.init(parameters), jnp.zeros((1, 3), bool), make_step(graph, optimizer, config)
    far = []
    for number in range(3):
        parameters, state, used_LK, _ = step(
            parameters, state, used_LK, jnp.asarray(features(), jnp.float32), jax.random.key(0), np.int32(number)
        )
        far.append(int((jnp.abs(parameters["codebooks"][...]) > 900).all(axis=-1).sum()))
        if number == 1:
            np.testing.assert_array_equal(used_LK, [[True, False, False]])
    assert far == [2, 2, 0]
    assert not used_LK.any()


def test_training() -> None:
    x_IF = features()
    first, again = train_rq_vae(x_IF, SMALL, 2, 16, seed=0), train_rq_vae(x_IF, SMALL, 2, 16, seed=0)
    assert first.losses is not None
    assert again.losses is not None
    assert first.losses.shape == (200, 2)
    assert first.losses[-20:].sum(axis=1).mean() < 0.7 * first.losses[:5].sum(axis=1).mean()
    assert first.losses[-20:, 0].mean() < 0.5 * first.losses[:5, 0].mean()
    assert first.errors[1] < first.errors[0] < 1
    assert first.codes.dtype == np.int32
    assert first.codes.shape == (150, 2)
    assert len(np.unique(first.codes[:, 0])) > 8
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.losses, again.losses)
    squares_IK = np.square(first.points[:, None] - first.codebooks[0]).sum(axis=2)
    np.testing.assert_array_equal(first.codes[:, 0], squares_IK.argmin(axis=1))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    config = RQVAEConfig(hidden=(4,), latent=2, steps=4, batch_size=8, learning_rate=1e30)
    with pytest.raises(ValueError, match="learning_rate below"):
        train_rq_vae(features(), config, 1, 2, seed=0)


def test_bad_configuration() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RQVAEConfig(hidden=(4, 0))
