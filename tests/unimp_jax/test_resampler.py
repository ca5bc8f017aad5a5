"""Both orders in which latents attend to patch tokens are the same attention, and the cheaper one is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unimp_jax.model.layers import DTypes, Loop
from unimp_jax.model.resampler import Resampler, ResamplerConfig

WIDTH = 16


def loss_of(config: ResamplerConfig, state: nnx.State, media_BPC: jax.Array, *, direct: bool) -> jax.Array:
    shapes = nnx.eval_shape(lambda: Resampler(config, WIDTH, DTypes(), Loop(), nnx.Rngs(0)))
    resampler = nnx.merge(nnx.graphdef(shapes), state)
    resampler.layers.direct = direct
    return jnp.sin(resampler(media_BPC)).sum()


@pytest.mark.parametrize(("layers", "heads", "head_dim", "latents"), [(1, 1, 4, 1), (2, 3, 8, 5)])
def test_both_orders_give_the_same_and_the_same_gradients(layers, heads, head_dim, latents):
    config = ResamplerConfig(layers=layers, heads=heads, head_dim=head_dim, latents=latents)
    state = jax.jit(lambda: nnx.state(Resampler(config, WIDTH, DTypes(), Loop(), nnx.Rngs(0))))()
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), state)
    media_BPC = 1 + 2 * rng.normal(size=(2, 9, WIDTH)).astype(np.float32)
    (mine, own), (theirs, others) = (
        jax.jit(jax.value_and_grad(functools.partial(loss_of, config, direct=direct), argnums=(0, 1)))(state, media_BPC)
        for direct in (True, False)
    )
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    # 1e-4 of the largest: sums over patches and channels in another order, in float32.
    for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * max(1.0, float(np.abs(y).max())))


def test_few_latents_attend_directly_and_normalised_keys_cannot():
    assert ResamplerConfig(heads=4, head_dim=16, latents=16).attends_directly(64)
    assert not ResamplerConfig(heads=4, head_dim=16, latents=64).attends_directly(64)
    assert not ResamplerConfig(heads=4, head_dim=16, latents=16, qk_norm=True).attends_directly(64)
