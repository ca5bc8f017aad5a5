"""Equal layers as one stacked module, run by a scan, so that a program does not grow with depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
    xs = (state, *slices)
    length = jax.tree.leaves(xs)[0].shape[0]

    def step_of(body: Callable[..., Any]) -> Callable[..., Any]:
        def step(carry: Any, xs: tuple[Any, ...]) -> tuple[Any, Any]:
            return body(carry, nnx.merge(graph, xs[0]), *xs[1:])

        if loop.remat == "none":
            return step
        # Between turns nothing can be found to be the same; within one, what is computed again would be.
        return jax.checkpoint(step, policy=POLICIES[loop.remat], prevent_cse=loop.unroll > 1)

    if loop.unroll >= length:
        return written_out([*[step_of(body)] * (length - 1), step_of(last or body)], carry, xs)
    if last is None:
        return jax.lax.scan(step_of(body), carry, xs, unroll=loop.unroll)

    def numbered(carry: Any, number: jax.Array) -> tuple[Any, Any]:  # slices of the whole, where it lies
        own = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), xs)
        return step_of(body)(carry, own)

    carry, outs = jax.lax.scan(numbered, carry, jnp.arange(length - 1))
    carry, out = step_of(last)(carry, jax.tree.map(lambda x: x[-1], xs))
    return carry, jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), outs, out)


def written_out(steps: Sequence[Callable[..., Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """A scan without a loop, one step after the other."""
    leaves, tree = jax.tree.flatten(xs)
    columns = [jax.lax.split(x, [1] * len(steps)) for x in leaves]  # its gradient is one concatenation
    outs = []
    for step, *own in zip(steps, *columns, strict=True):
        carry, out = step(carry, tree.unflatten([x.squeeze(0) for x in own]))
        outs.append(out)
    return carry, jax.tree.map(lambda *out: jnp.stack(out), *outs)


def unstack(modules: M, count: int) -> list[M]:
    """The modules of a stack, one by one."""
    graph, state = nnx.split(modules)
    return [nnx.merge(graph, jax.tree.map(lambda x: x[i], state)) for i in range(count)]  # noqa: B023
