"""Low-rank adapters of linear layers (LoRA, arXiv:2106.09685), for decoders that are too large to train in full."""

import dataclasses
import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model import cpu
from unimp_jax.model.axes import gathered
from unimp_jax.model.layers import DTypes, Linear, dropout, of_keys, parameter


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Which linear layers have adapters, and the size of these."""

    rank: int = 0
    """Rank of the product that is added to each matrix; 0: no adapters."""
    alpha: float = 16.0
    """The product is multiplied by alpha / rank."""
    layers: str = r"decoder/.*"
    """Regular expression that matches the full names of the linear layers with adapters, such as
    decoder/layers/attention/query."""
    dropout: float = 0.0
    """Dropout rate of the adapters' inputs in training; only for adapters of the decoder."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"adapters: rank {self.rank} must be 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapters: dropout {self.dropout} must be at least 0 and less than 1")
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(f"adapters: layers {self.layers!r} is not a valid regular expression ({error})") from error


class Adapter(nnx.Module):
    """A low-rank product of two matrices that is added to the matrix of a linear layer; 0 before training."""

    def __init__(self, linear: Linear, config: AdapterConfig, number: int, dtypes: DTypes, rngs: nnx.Rngs):
        """Creates the adapter of a linear layer, with a unique number, which makes its dropout independent of the
        others."""
        shape, names = linear.kernel.shape, linear.kernel.get_metadata("axis_names")
        layers = names.count("layers")
        split, rank = layers + linear.contracted, config.rank
        self.dtype, self.contracted, self.scale = dtypes.compute, linear.contracted, config.alpha / rank
        self.dropout, self.number = config.dropout, number
        down = jax.random.normal(rngs.params(), (*shape[:split], rank)) / math.sqrt(math.prod(shape[layers:split]))
        up = jnp.zeros((*shape[:layers], rank, *shape[split:]), dtypes.parameter)
        self.down = parameter(down.astype(dtypes.parameter), (*names[:split], "rank"))
        self.up = parameter(up, (*names[:layers], "rank", *names[split:]))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns what is added to the layer's product, [..., O] with merged output axes; a key enables dropout."""
        if key is not None:
            x = dropout(x, self.dropout, of_keys(lambda one: jax.random.fold_in(one, self.number), key))
        low = cpu.matmul(x.astype(self.dtype), gathered(self.down, self.dtype, self.contracted), self.contracted)
        return self.scale * cpu.matmul(low, gathered(self.up, self.dtype, 1), 1)

    def added_to(self, kernel: jax.Array) -> jax.Array:
        """Returns the matrix, stacked or not, plus the product; computed in float32, in the dtype of the matrix."""
        layers, rank = kernel.shape[: self.down.ndim - 1 - self.contracted], self.down.shape[-1]
        down_LIr = self.down[...].reshape(*layers, -1, rank).astype(jnp.float32)
        up_LrO = self.up[...].reshape(*layers, rank, -1).astype(jnp.float32)
        return (kernel + self.scale * (down_LIr @ up_LrO).reshape(kernel.shape)).astype(kernel.dtype)


def adapted(module: nnx.Module) -> Iterator[Linear]:
    """Returns the linear layers that have an adapter."""
    return (layer for _, layer in nnx.iter_modules(module) if isinstance(layer, Linear) and layer.adapter is not None)


def add_adapters(module: nnx.Module, config: AdapterConfig, dtypes: DTypes, rngs: nnx.Rngs) -> None:
    """Adds adapters to the linear layers that the configuration selects, if its rank is not 0; raises ValueError if it
    selects no layer, or one of the resampler, which bypasses its linear layers where that is faster; or there is
    dropout and it selects a layer outside the decoder."""
    if not config.rank:
        return
    linear = {"/".join(map(str, path)): layer for path, layer in nnx.iter_modules(module) if isinstance(layer, Linear)}
    chosen = [name for name in linear if re.fullmatch(config.layers, name)]
    if not chosen:
        raise ValueError(f"adapters: layers {config.layers!r} matches none of the linear layers {', '.join(linear)}")
    if of_resampler := [name for name in chosen if "resampler" in name]:
        raise ValueError(
            f"adapters: layers {config.layers!r} matches {of_resampler[0]}; adapters of the resampler are not supported"
        )
    if config.dropout and (others := [name for name in chosen if not name.startswith("decoder/")]):
        raise ValueError(
            f"adapters: dropout is only supported for layers of the decoder, not for {others[0]}; set dropout 0"
        )
    for number, name in enumerate(chosen):
        linear[name].adapter = Adapter(linear[name], config, number, dtypes, rngs)


def merge_adapters(module: nnx.Module) -> None:
    """Replaces matrices by their sum with the adapters' products, one at a time; each keeps its sharding."""
    for layer in list(adapted(module)):
        graph, state = nnx.split(layer.adapter)
        kernel = layer.kernel[...]
        add = jax.jit(lambda state, kernel: nnx.merge(graph, state).added_to(kernel), out_shardings=kernel.sharding)  # noqa: B023
        layer.kernel = parameter(add(state, kernel), layer.kernel.get_metadata("axis_names"))
        del layer.adapter
