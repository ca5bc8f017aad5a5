"""Shortcuts for TPUs against what they stand for, computed here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimp_jax.model import tpu
from unimp_jax.model.layers import POLICIES, DTypes, Norm


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(tpu, "platform", lambda: "tpu")


def test_gelu_by_erf(on_tpu):
    x = jnp.linspace(-12, 12, 4001)
    both = [jax.jit(jax.vmap(jax.value_and_grad(f))) for f in (tpu.gelu, lambda x: jax.nn.gelu(x, approximate=False))]
    for mine, plain in zip(*(f(x) for f in both), strict=True):
        np.testing.assert_allclose(mine, plain, atol=2e-6)  # 1 + erf in float32, times x of up to 12
    assert tpu.gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("ratio", [0, 1, 10, 50, 200])
def test_variance_in_one_pass(on_tpu, ratio):
    """The mean is `ratio` deviations: one pass makes less of an error than bfloat16 has made of the numbers."""
    exact = np.random.default_rng(ratio).normal(ratio, 1, (8, 2048)).astype(np.float32)
    rounded = jnp.asarray(exact, jnp.bfloat16)
    mean, variance = jax.jit(tpu.mean_and_variance)(rounded)
    truth = np.asarray(rounded, np.float64)
    np.testing.assert_allclose(mean[:, 0], truth.mean(-1), rtol=1e-5, atol=1e-5)
    by_rounding = np.abs(truth.var(-1) / exact.astype(np.float64).var(-1) - 1).max()
    error = np.abs(np.asarray(variance)[:, 0] / truth.var(-1) - 1).max()
    assert error < max(by_rounding, 1e-5)


def test_float32_keeps_two_passes(on_tpu):
    x = jnp.asarray(np.random.default_rng(0).normal(3000, 1, (4, 512)), jnp.float32)
    _, variance = jax.jit(tpu.mean_and_variance)(x)
    np.testing.assert_allclose(variance[:, 0], np.asarray(x, np.float64).var(-1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_backward_pass_takes_statistics_as_they_were(monkeypatch, kind, platform):
    """Where they are not kept, each is a sum over channels more."""
    monkeypatch.setattr(tpu, "platform", lambda: platform)
    norm = Norm(kind, {"norm": 64}, eps=1e-5, bias=False, dtypes=DTypes("float32", "bfloat16"))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)), jnp.bfloat16)

    def loss(x):
        return jnp.sin(norm(x).astype(jnp.float32)).sum()

    def sums(policy):
        jaxpr = jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=POLICIES[policy])))(x)
        (again,) = [equation for equation in jaxpr.eqns if "jaxpr" in equation.params and "policy" in equation.params]
        return str(again.params["jaxpr"]).count(" reduce_sum[")

    assert sums("full") - sums("dots") == (2 if kind == "layer_norm" else 1)
    kept = jax.jit(jax.grad(jax.checkpoint(loss, policy=POLICIES["dots"])))(x)
    np.testing.assert_allclose(
        kept.astype(jnp.float32),
        jax.jit(jax.grad(loss))(x).astype(jnp.float32),
        atol=0.02,  # bfloat16's 8 bits
    )
