"""The few layers that every part is made of, each with named axes, and stacks of equal layers, run by a scan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from unimp_jax.model import cpu, tpu
from unimp_jax.model.axes import constrain, gathered

Sizes = dict[str, int]
"""Logical axis name -> size, in the order of the array's axes."""

NormKind = Literal["layer_norm", "rms_norm"]


@dataclasses.dataclass(frozen=True)
class DTypes:
    """What is stored and what is computed in."""

    parameter: str = "float32"
    compute: str = "float32"


def parameter(value: jax.Array, names: tuple[str, ...]) -> nnx.Param:
    """A parameter that knows what its axes are called; `unimp_jax.sharding` turns names into places on a mesh.

    The names are metadata of our own, since flax takes its own `out_sharding` for mesh axes wherever a mesh is set.
    """
    return nnx.Param(value, axis_names=names)


def normal(rngs: nnx.Rngs, sizes: Sizes, deviation: float, dtypes: DTypes) -> nnx.Param:
    """A parameter drawn from a normal distribution."""
    value = deviation * jax.random.normal(rngs.params(), tuple(sizes.values()), jnp.float32)
    return parameter(value.astype(dtypes.parameter), tuple(sizes))


def constant(value: float, sizes: Sizes, dtypes: DTypes) -> nnx.Param:
    """A parameter that starts the same everywhere."""
    return parameter(jnp.full(tuple(sizes.values()), value, dtypes.parameter), tuple(sizes))


class Linear(nnx.Module):
    """A product over the last axes of its input, `inputs`, that leaves `outputs` in their place.

    Attributes:
      adapter: what is added to its product, if it has been given one (`unimp_jax.model.adapters`).
      kernel_scale: what each column of its matrix is multiplied by, if that is quantised
        (`unimp_jax.model.quantization`).
    """

    adapter: Any = None
    kernel_scale: Any = None

    def __init__(
        self, inputs: Sizes, outputs: Sizes, *, bias: bool, dtypes: DTypes, rngs: nnx.Rngs, scale: float = 1.0
    ):
        """Weights are normal with deviation scale / sqrt(fan in)."""
        self.dtype, self.contracted = dtypes.compute, len(inputs)
        self.kernel: nnx.Variable[Any] = normal(
            rngs, inputs | outputs, scale / math.sqrt(math.prod(inputs.values())), dtypes
        )
        self.bias = constant(0.0, outputs, dtypes) if bias else None

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """With a key, its adapter has dropout."""
        # Several outputs are one axis for as long as they can be: TPUs fill up the last one to 128 in memory.
        y = cpu.matmul(x.astype(self.dtype), gathered(self.kernel, self.dtype, self.contracted), self.contracted)
        y = y if self.kernel_scale is None else y * gathered(self.kernel_scale, self.dtype).reshape(-1)
        y = y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(-1)
        y = y if self.adapter is None else y + self.adapter(x, key)
        return y.reshape(*y.shape[:-1], *self.kernel.shape[self.contracted :])


STATISTICS = "statistics"
"""The name of what norms take of a token, to which policies refer."""


def kept(x: jax.Array) -> jax.Array:
    """What a norm takes of a token: few numbers, which policies keep for the backward pass. Gradients must go through
    what this returns alone, or it is computed again all the same."""
    return checkpoint_name(x, STATISTICS)


class Norm(nnx.Module):
    """Layer norm or RMS norm over the last axes, with statistics in float32."""

    def __init__(self, kind: NormKind, sizes: Sizes, *, eps: float, bias: bool, dtypes: DTypes):
        self.kind, self.eps, self.dtype, self.axes = kind, eps, dtypes.compute, len(sizes)
        self.scale = constant(1.0, sizes, dtypes)
        self.bias = constant(0.0, sizes, dtypes) if bias and kind == "layer_norm" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        rows, channels = x.shape[: x.ndim - self.axes], x.shape[x.ndim - self.axes :]
        flat = x.reshape(*rows, math.prod(channels))  # as `Linear` leaves it
        return self.scaled(self.standardised(flat)).astype(self.dtype).reshape(x.shape)

    def standardised(self, x: jax.Array) -> jax.Array:
        """float32, before scale and bias, over the last axis; no parameter has a part in it."""
        if self.kind == "layer_norm":
            mean, variance = tpu.mean_and_variance(x, kept)
            return (x - mean) * jax.lax.rsqrt(variance + self.eps)
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(kept(jnp.square(x).mean(-1, keepdims=True)) + self.eps)

    def scaled(self, x: jax.Array) -> jax.Array:
        """What is standardised, with scale and bias: float32."""
        scale, bias = self.scale_and_bias()
        return x * scale if self.bias is None else x * scale + bias

    def scale_and_bias(self) -> tuple[jax.Array, jax.Array]:
        """float32, of one axis; a bias that is not there is 0."""
        scale = self.scale[...].astype(jnp.float32).reshape(-1)
        return scale, jnp.zeros_like(scale) if self.bias is None else self.bias[...].astype(jnp.float32).reshape(-1)


MLPKind = Literal["gelu", "relu", "swiglu"]
"""Exact GELU, ReLU, or silu(gate) * up."""


class MLP(nnx.Module):
    """Up to a wider layer and back: two matrices with an activation between them, or three with a gate."""

    def __init__(
        self,
        kind: MLPKind,
        width: Sizes,
        hidden: int,
        *,
        bias: bool,
        dtypes: DTypes,
        rngs: nnx.Rngs,
        down_scale: float = 1.0,
    ):
        self.kind, wide = kind, {"mlp": hidden}
        self.gate = Linear(width, wide, bias=bias, dtypes=dtypes, rngs=rngs) if kind == "swiglu" else None
        self.up = Linear(width, wide, bias=bias, dtypes=dtypes, rngs=rngs)
        self.down = Linear(wide, width, bias=bias, dtypes=dtypes, rngs=rngs, scale=down_scale)

    def __call__(self, x_BTD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """With a key, adapters have dropout."""
        up = constrain(self.up(x_BTD, key), *[PartitionSpec.UNCONSTRAINED] * 2, "mlp")
        if self.gate is not None:
            return self.down(jax.nn.silu(self.gate(x_BTD, key)) * up, key)
        return self.down(jax.nn.relu(up) if self.kind == "relu" else tpu.gelu(up), key)


def of_keys(draw: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """What is drawn by one key; or by each of several, stacked."""
    return jax.vmap(draw)(keys) if keys.ndim else draw(keys)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate`, to 1 part in 65,536, and scales the others; no key, no dropout.

    Args:
      x: [B, …].
      key: of all rows, [], or of each, [B]; the noise of a row then depends on no other.
    """
    if key is None or rate == 0:
        return x
    keep = of_keys(lambda one: jax.random.bits(one, x.shape[key.ndim :], jnp.uint16), key) >= round(rate * 2**16)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


Remat = Literal["none", "full", "dots", "dots_with_batch"]
"""What a scanned layer keeps for its backward pass: everything; its input alone; also the products with weights, and of
norms the two numbers of a token; also the products of attention."""

_statistics = jax.checkpoint_policies.save_only_these_names(STATISTICS)
_both = jax.checkpoint_policies.save_from_both_policies
POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": _both(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _statistics),
    "dots_with_batch": _both(jax.checkpoint_policies.dots_saveable, _statistics),
}


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a stack is run: what its backward pass keeps of a layer, and how many layers are unrolled at a time."""

    remat: Remat = "none"
    unroll: int = 1


M = TypeVar("M")


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` modules as one, each parameter with a leading axis "layers"."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None, "axis_names": "layers"})
    def make_all(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return make_all(rngs)


def unstack(modules: M, count: int) -> list[M]:
    """The modules of a stack, one by one."""
    graph, state = nnx.split(modules)
    return [nnx.merge(graph, jax.tree.map(lambda x: x[i], state)) for i in range(count)]  # noqa: B023


def scan(
    body: Callable[..., Any], carry: Any, modules: Any, *slices: Any, loop: Loop = Loop(),
    last: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """(carry, outs[i]) = body(carry, modules[i], *slices[i]) for each i: (carry, outs).

    The body is traced once, so that a program does not grow with depth, unless all of it is unrolled. `nnx.scan` would
    write all parameters out of the loop again, frozen ones too; here they only go in.

    Args:
      last: takes the place of `body` in the last step, where all is unrolled; its carry may be of another shape.
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

    if loop.unroll < length:
        return jax.lax.scan(step_of(body), carry, xs, unroll=loop.unroll)
    return cpu.unrolled([*[step_of(body)] * (length - 1), step_of(last or body)], carry, xs)
