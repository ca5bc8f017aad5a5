"""Basic layers shared by all parts, with named axes, and stacks of identical layers that are run by a scan."""

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
    """Dtypes of stored parameters and of computation."""

    parameter: str = "float32"
    compute: str = "float32"


def parameter(value: jax.Array, names: tuple[str, ...]) -> nnx.Param:
    """Creates a parameter with named axes, which `unimp_jax.sharding` maps to mesh axes. The names are our own
    metadata, because Flax interprets its `out_sharding` as mesh axes wherever a mesh is set."""
    return nnx.Param(value, axis_names=names)


def normal(rngs: nnx.Rngs, sizes: Sizes, deviation: float, dtypes: DTypes) -> nnx.Param:
    """Creates a parameter drawn from a normal distribution."""
    value = deviation * jax.random.normal(rngs.params(), tuple(sizes.values()), jnp.float32)
    return parameter(value.astype(dtypes.parameter), tuple(sizes))


def constant(value: float, sizes: Sizes, dtypes: DTypes) -> nnx.Param:
    """Creates a parameter whose entries all start at `value`."""
    return parameter(jnp.full(tuple(sizes.values()), value, dtypes.parameter), tuple(sizes))


class Linear(nnx.Module):
    """A linear layer that contracts the last axes of its input, `inputs`, and replaces them by `outputs`.

    Attributes:
      adapter: Low-rank adapter added to the product, or None (`unimp_jax.model.adapters`).
      kernel_scale: Scale of each column of a quantised matrix, or None (`unimp_jax.model.quantization`).
    """

    adapter: Any = None
    kernel_scale: Any = None

    def __init__(
        self, inputs: Sizes, outputs: Sizes, *, bias: bool, dtypes: DTypes, rngs: nnx.Rngs, scale: float = 1.0
    ):
        """Draws weights from a normal distribution with standard deviation scale / sqrt(fan in)."""
        self.dtype, self.contracted = dtypes.compute, len(inputs)
        self.kernel: nnx.Variable[Any] = normal(
            rngs, inputs | outputs, scale / math.sqrt(math.prod(inputs.values())), dtypes
        )
        self.bias = constant(0.0, outputs, dtypes) if bias else None

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Applies the layer; with a key, dropout is applied in its adapter."""
        # Output axes stay merged for as long as possible: TPUs pad the last axis to 128 in memory.
        y = cpu.matmul(x.astype(self.dtype), gathered(self.kernel, self.dtype, self.contracted), self.contracted)
        y = y if self.kernel_scale is None else y * gathered(self.kernel_scale, self.dtype).reshape(-1)
        y = y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(-1)
        y = y if self.adapter is None else y + self.adapter(x, key)
        return y.reshape(*y.shape[:-1], *self.kernel.shape[self.contracted :])


STATISTICS = "statistics"
"""Checkpoint name of the statistics of norms, which rematerialisation policies refer to."""


def kept(x: jax.Array) -> jax.Array:
    """Marks a norm's per-token statistics, a few numbers, for the policies to save for the backward pass. Gradients
    must depend on the returned value only; otherwise the statistics are recomputed all the same."""
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
        """Normalises over the last axis, before scale and bias, in float32; uses no parameters."""
        if self.kind == "layer_norm":
            mean, variance = tpu.mean_and_variance(x, kept)
            return (x - mean) * jax.lax.rsqrt(variance + self.eps)
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(kept(jnp.square(x).mean(-1, keepdims=True)) + self.eps)

    def scaled(self, x: jax.Array) -> jax.Array:
        """Applies scale and bias to normalised values, in float32."""
        scale, bias = self.scale_and_bias()
        return x * scale if self.bias is None else x * scale + bias

    def scale_and_bias(self) -> tuple[jax.Array, jax.Array]:
        """Returns scale and bias as float32 vectors; a missing bias is 0."""
        scale = self.scale[...].astype(jnp.float32).reshape(-1)
        return scale, jnp.zeros_like(scale) if self.bias is None else self.bias[...].astype(jnp.float32).reshape(-1)


MLPKind = Literal["gelu", "relu", "swiglu"]
"""Activation: exact GELU, ReLU, or silu(gate) * up."""


class MLP(nnx.Module):
    """An MLP: two matrices with an activation between them, or three with a gate."""

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
        """Applies the MLP; with a key, dropout is applied in its adapters."""
        up = constrain(self.up(x_BTD, key), *[PartitionSpec.UNCONSTRAINED] * 2, "mlp")
        if self.gate is not None:
            return self.down(jax.nn.silu(self.gate(x_BTD, key)) * up, key)
        return self.down(jax.nn.relu(up) if self.kind == "relu" else tpu.gelu(up), key)


def of_keys(draw: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """Applies `draw` to one key, or to each of several keys and stacks the results."""
    return jax.vmap(draw)(keys) if keys.ndim else draw(keys)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries of x, [B, …], with probability `rate`, to 1 part in 65,536, and scales the others up; without a
    key, returns x. One key per row, [B], instead of one for all makes the noise of a row independent of other rows."""
    if key is None or rate == 0:
        return x
    keep = of_keys(lambda one: jax.random.bits(one, x.shape[key.ndim :], jnp.uint16), key) >= round(rate * 2**16)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


Remat = Literal["none", "full", "dots", "dots_with_batch"]
"""What a scanned layer stores for its backward pass. none: everything; full: only its input; dots: also the products
with weights and the two statistics per token of norms; dots_with_batch: also the products of attention."""

_statistics = jax.checkpoint_policies.save_only_these_names(STATISTICS)
_both = jax.checkpoint_policies.save_from_both_policies
POLICIES: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": _both(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _statistics),
    "dots_with_batch": _both(jax.checkpoint_policies.dots_saveable, _statistics),
}


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a stack of layers is run: its rematerialisation policy, and the number of layers unrolled at a time."""

    remat: Remat = "none"
    unroll: int = 1


M = TypeVar("M")


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """Creates `count` modules as one, in which each parameter has a leading axis "layers"."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None, "axis_names": "layers"})
    def make_all(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return make_all(rngs)


def unstack(modules: M, count: int) -> list[M]:
    """Returns the modules of a stack as a list."""
    graph, state = nnx.split(modules)
    return [nnx.merge(graph, jax.tree.map(lambda x: x[i], state)) for i in range(count)]  # noqa: B023


def scan(
    body: Callable[..., Any], carry: Any, modules: Any, *slices: Any, loop: Loop = Loop(),
    last: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Runs (carry, outs[i]) = body(carry, modules[i], *slices[i]) for each i and returns (carry, outs).

    The body is traced once, so that program size does not grow with depth unless the loop is fully unrolled. `nnx.scan`
    would write all parameters out of the loop again, including frozen ones; here they are only inputs.

    Args:
      last: Replaces `body` in the last step if the loop is fully unrolled; its carry may have another shape.
    """
    graph, state = nnx.split(modules)
    xs = (state, *slices)
    length = jax.tree.leaves(xs)[0].shape[0]

    def step_of(body: Callable[..., Any]) -> Callable[..., Any]:
        def step(carry: Any, xs: tuple[Any, ...]) -> tuple[Any, Any]:
            return body(carry, nnx.merge(graph, xs[0]), *xs[1:])

        if loop.remat == "none":
            return step
        # XLA cannot merge recomputation across loop iterations, but it could within an unrolled iteration.
        return jax.checkpoint(step, policy=POLICIES[loop.remat], prevent_cse=loop.unroll > 1)

    if loop.unroll < length:
        return jax.lax.scan(step_of(body), carry, xs, unroll=loop.unroll)
    return cpu.unrolled([*[step_of(body)] * (length - 1), step_of(last or body)], carry, xs)
