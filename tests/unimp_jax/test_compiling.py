"""How much XLA optimises on CPUs, which changes no value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unimp_jax.compiling import LEVEL, QUICK, compiler_options, draw
from unimp_jax.planning.chips import Slices, devices


def test_cpus_optimise_little_unless_flags_say_otherwise(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert compiler_options() == QUICK
    assert compiler_options(jax.make_mesh((2,), ("data",))) == QUICK
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=3")
    assert compiler_options() is None


def test_tpus_are_compiled_for_as_ever(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    mesh = jax.sharding.Mesh(np.array(devices(Slices("v5e-4"))), ("data",))
    assert compiler_options(mesh) is None


@pytest.mark.parametrize("level", [None, 3])
def test_what_is_drawn_is_what_each_call_draws(level, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "" if level is None else f"--{LEVEL}={level}")

    def make() -> nnx.State:
        return nnx.state(nnx.Linear(30, 50, rngs=nnx.Rngs(3)))

    drawn, called = draw(make), make()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), drawn, called)
    assert float(jnp.abs(drawn["kernel"][...]).max()) > 0.1
