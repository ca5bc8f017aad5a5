"""Models for tests, with parameters that no program is compiled to draw."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.model import ModelConfig, UniMP
from unimp_jax.model.layers import Linear
from unimp_jax.sharding import structure


def drawn(config: ModelConfig, seed: int = 0) -> UniMP:
    """`UniMP(config, rngs=nnx.Rngs(seed))` with other random numbers of the same spread, drawn by NumPy.

    To draw them by JAX, one program is compiled for each shape: 10 s of processor time for the smallest model, of which
    running it takes 4.
    """
    graph, state = structure(config)
    model, rng = nnx.merge(graph, state), np.random.default_rng(seed)
    spreads = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            first = module.kernel.get_metadata("axis_names").count("layers")
            inputs = module.kernel.shape[first : first + module.contracted]
            spreads[*path, "kernel"] = 1 / math.sqrt(math.prod(inputs))

    def value(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        constant = {"scale": 1.0, "bias": 0.0, "attention_gate": 0.0, "mlp_gate": 0.0}.get(path[-1])
        spread = spreads.get(path, 1.0 if path[-1] == "latents" else 0.02)
        numbers = (
            np.full(variable.shape, constant) if constant is not None else spread * rng.normal(size=variable.shape)
        )
        return variable.replace(jnp.asarray(numbers.astype(variable.dtype)))

    return nnx.merge(graph, nnx.map_state(value, state))
