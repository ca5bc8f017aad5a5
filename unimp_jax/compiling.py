"""How much XLA optimises, and parameters drawn at random by one program."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

T = TypeVar("T")
LEVEL = "xla_backend_optimization_level"
QUICK: dict[str, Any] = {LEVEL: 1}


def compiler_options(mesh: Mesh | None = None) -> dict[str, Any] | None:
    """Options for `jax.jit` on the devices of a mesh, or on the default ones: for CPUs, LLVM's first level of
    optimisation; None for others, or where `XLA_FLAGS` names a level.

    The step of a model for minutes is compiled in 23 s where the default takes 40, and its random parameters in 10 s
    where it takes 28; steps are not slower, for their products are calls of a library.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    ours = platform == "cpu" and LEVEL not in os.environ.get("XLA_FLAGS", "")
    return QUICK if ours else None


def draw(make: Callable[[], T], out_shardings: Any = None) -> T:
    """What `make` draws, arrays in any tree, compiled once for all of them and not one by one."""
    return jax.jit(make, out_shardings=out_shardings, compiler_options=compiler_options())()
