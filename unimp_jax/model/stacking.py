"""Equal layers as one stacked module, run by a scan, so that a program does not grow with depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M")

Remat = Literal["none", "full", "dots", "dots_with_batch"]
"""What a scanned body keeps for its backward pass: everything; its input alone; also the products with weights; also
those of attention."""

POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots_with_batch": jax.checkpoint_policies.dots_saveable,
}


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a stack is run: what its backward pass keeps of a layer, and how many layers are written out a turn."""

    remat: Remat = "none"
    unroll: int = 1


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` modules as one, each parameter with a leading axis "layers"."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None, "axis_names": "layers"})
    def make_all(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return make_all(rngs)


def scan(
    body: Callable[..., Any], carry: Any, modules: Any, *slices: Any, loop: Loop = Loop(),
    last: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """(carry, outs[i]) = body(carry, modules[i], *slices[i]) for each i, the body traced once a turn: (carry, outs).

    `last`, where given, does the last step in the place of `body`, and may give a carry of another shape.

    `nnx.scan` would write all parameters out of the loop again, frozen ones too; here they only go in.
    """
    graph, state = nnx.split(modules)

    def step(carry: Any, xs: tuple[Any, ...]) -> tuple[Any, Any]:
        return body(carry, nnx.merge(graph, xs[0]), *xs[1:])

    if loop.remat != "none":
        # Between turns nothing can be found to be the same; within one, what is computed again would be.
        step = jax.checkpoint(step, policy=POLICIES[loop.remat], prevent_cse=loop.unroll > 1)
    xs = (state, *slices)
    length = jax.tree.leaves(xs)[0].shape[0]
    if last is None:
        return jax.lax.scan(step, carry, xs, unroll=min(loop.unroll, length))
    final = length - 1

    def numbered(carry: Any, number: jax.Array) -> tuple[Any, Any]:  # slices of the whole, where it lies
        return step(carry, jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), xs))

    carry, outs = jax.lax.scan(numbered, carry, jnp.arange(final))
    own, *others = jax.tree.map(lambda x: x[final], xs)
    carry, out = last(carry, nnx.merge(graph, own), *others)
    return carry, jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), outs, out)


def unstack(modules: M, count: int) -> list[M]:
    """The modules of a stack, one by one."""
    graph, state = nnx.split(modules)
    return [nnx.merge(graph, jax.tree.map(lambda x: x[i], state)) for i in range(count)]  # noqa: B023
