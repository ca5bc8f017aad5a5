"""The causal decoder: GPT-NeoX, MPT or LLaMA, by configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.attention import KeysValues, attend, attention, segments
from unimp_jax.model.axes import constrain
from unimp_jax.model.kernels import Kernel
from unimp_jax.model.layers import MLP, DTypes, Linear, MLPKind, Norm, NormKind, Sizes, dropout
from unimp_jax.model.positions import alibi, rotary_angles, rotate
from unimp_jax.model.stacking import stack


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Geometry of the decoder; the defaults are RedPajama-INCITE-3B."""

    vocab_size: int = 50432
    """Rows of the base table; ids from here on are new tokens."""
    new_tokens: int = 0
    """Rows of the table of new tokens."""
    width: int = 2560
    layers: int = 32
    heads: int = 32
    """Query heads; divides width."""
    kv_heads: int | None = None
    """Key and value heads; divides heads. None: as many as heads."""
    mlp_width: int = 10240
    norm: NormKind = "layer_norm"
    norm_eps: float = 1e-5
    bias: bool = True
    """Biases in projections and layer norms."""
    position: Literal["rotary", "alibi"] = "rotary"
    rotary_fraction: float = 1.0
    """Part of a head's channels that are turned, from the first on."""
    rotary_base: float = 10000.0
    parallel_residual: bool = False
    """Attention and MLP read the same input, and both are added to it (GPT-NeoX)."""
    mlp: MLPKind = "gelu"
    qk_norm: bool = False
    """Queries and keys are normalised, over all heads at once (MPT)."""
    tie_embeddings: bool = False
    """The output head is the embedding table."""
    dropout: float = 0.0
    """On the embedding and on what each layer adds, in training."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.num_kv_heads, self.mlp_width) < 1:
            raise ValueError(f"decoder: every size must be at least 1, not {self}")
        if self.width % self.heads:
            raise ValueError(f"decoder: heads {self.heads} must divide width {self.width}")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"decoder: kv_heads {self.kv_heads} must divide heads {self.heads}")
        if self.position == "rotary" and (not 0 < self.rotary_fraction <= 1 or self.rotary_width % 2):
            raise ValueError(
                f"decoder: rotary_fraction {self.rotary_fraction} of {self.head_dim} channels is {self.rotary_width}; "
                "it must be an even number, at most all"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"decoder: dropout {self.dropout} must be at least 0 and less than 1")
        if self.vocab_size < 1 or self.new_tokens < 0:
            raise ValueError(
                f"decoder: vocab_size {self.vocab_size} must be above 0, new_tokens {self.new_tokens} not below"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def rotary_width(self) -> int:
        return int(self.head_dim * self.rotary_fraction)


class TextContext(NamedTuple):
    """What a layer needs to know of the tokens it reads.

    Attributes:
      angles: (cos, sin) for rotary positions, each [B, T, r], else None.
      attend: (queries [B, T, H, h], keys [B, T, K, h], values [B, T, K, h]) of these tokens -> [B, T, H, h]; it knows
        who sees whom, and what there is to be seen besides.
      places_BA: int32, the tokens whose result is wanted, which alone have queries then; None: all.
    """

    angles: tuple[jax.Array, jax.Array] | None
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    places_BA: jax.Array | None = None

    def wanted(self, x: jax.Array) -> jax.Array:
        """[B, T, d] -> [B, A, d]."""
        return x if self.places_BA is None else jnp.take_along_axis(x, self.places_BA[..., None], axis=1)


def angles_of(config: DecoderConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    if config.position != "rotary":
        return None
    return rotary_angles(positions_BT, config.rotary_width, config.rotary_base)


def text_context(
    config: DecoderConfig, positions_BT: jax.Array, segment_ids_BT: jax.Array, kernel: Kernel
) -> TextContext:
    """Of whole rows: a token sees those before it in its segment."""
    costs = positions_BT if config.position == "alibi" else None
    sees = segments(segment_ids_BT, segment_ids_BT, kernel, causal=True, alibi_BT=costs)
    return TextContext(angles_of(config, positions_BT), functools.partial(attention, sees=sees))


def answer_context(
    config: DecoderConfig, positions_BT: jax.Array, segment_ids_BT: jax.Array, places_BA: jax.Array
) -> TextContext:
    """The same where nothing is wanted but what some tokens come to: in the last layer, before an answer."""
    at_places = jnp.take_along_axis(segment_ids_BT, places_BA, axis=1)
    same_BAT = (at_places[..., None] == segment_ids_BT[:, None]) & (at_places > 0)[..., None]
    mask_BAT = same_BAT & (jnp.arange(segment_ids_BT.shape[1]) <= places_BA[..., None])

    def look(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        queries_BA = jnp.take_along_axis(positions_BT, places_BA, axis=1)
        bias = alibi(queries_BA, positions_BT, config.heads) if config.position == "alibi" else None
        return attend(query, key, value, mask_BAT, bias)

    return TextContext(angles_of(config, positions_BT), look, places_BA)


class SelfAttention(nnx.Module):
    """Causal self-attention within segments."""

    def __init__(self, config: DecoderConfig, dtypes: DTypes, rngs: nnx.Rngs):
        embed, heads = {"embed": config.width}, {"heads": config.heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        self.query = Linear(embed, heads, bias=config.bias, dtypes=dtypes, rngs=rngs)
        self.key = Linear(embed, kv_heads, bias=config.bias, dtypes=dtypes, rngs=rngs)
        self.value = Linear(embed, kv_heads, bias=config.bias, dtypes=dtypes, rngs=rngs)
        scale = (2 * config.layers) ** -0.5
        self.out = Linear(heads, embed, bias=config.bias, dtypes=dtypes, rngs=rngs, scale=scale)

        def qk_norm(sizes: Sizes) -> Norm | None:
            if not config.qk_norm:
                return None
            return Norm(config.norm, sizes, eps=config.norm_eps, bias=config.bias, dtypes=dtypes)

        self.query_norm, self.key_norm = qk_norm(heads), qk_norm(kv_heads)

    def __call__(self, x_BTD: jax.Array, context: TextContext) -> tuple[jax.Array, KeysValues]:
        query, key, value = self.query(context.wanted(x_BTD)), self.key(x_BTD), self.value(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if context.angles is not None:
            cos, sin = context.angles
            query, key = rotate(query, (context.wanted(cos), context.wanted(sin))), rotate(key, context.angles)
        query = constrain(query, "batch", "sequence", "heads", None)
        key, value = (constrain(x, "batch", None, "kv_heads", None) for x in (key, value))
        return self.out(context.attend(query, key, value)), KeysValues(key, value)


class DecoderLayer(nnx.Module):
    """Attention and MLP, each on a normalised input and added to it."""

    def __init__(self, config: DecoderConfig, dtypes: DTypes, rngs: nnx.Rngs):
        self.parallel, self.dropout = config.parallel_residual, config.dropout
        norm = {"norm": config.width}
        self.attention_norm = Norm(config.norm, norm, eps=config.norm_eps, bias=config.bias, dtypes=dtypes)
        self.attention = SelfAttention(config, dtypes, rngs)
        self.mlp_norm = Norm(config.norm, norm, eps=config.norm_eps, bias=config.bias, dtypes=dtypes)
        self.mlp = MLP(
            config.mlp, {"embed": config.width}, config.mlp_width, bias=config.bias, dtypes=dtypes, rngs=rngs,
            down_scale=(2 * config.layers) ** -0.5,
        )  # fmt: skip

    def __call__(self, x_BTD: jax.Array, context: TextContext, key: jax.Array | None) -> tuple[jax.Array, KeysValues]:
        """The text after this layer where it is wanted, and what it shows to later tokens; with a key, with dropout."""
        keys = (None, None) if key is None else jax.random.split(key)
        attended, own = self.attention(self.attention_norm(x_BTD), context)
        before = context.wanted(x_BTD)
        after = before + dropout(attended, self.dropout, keys[0])
        wide = self.mlp(self.mlp_norm(before if self.parallel else after))
        return constrain(after + dropout(wide, self.dropout, keys[1]), "batch", "sequence", None), own


class Decoder(nnx.Module):
    """All decoder layers, [groups, layers of a group], and the norm after them; `UniMP` runs them."""

    def __init__(self, config: DecoderConfig, groups: int, dtypes: DTypes, rngs: nnx.Rngs):
        def group(rngs: nnx.Rngs) -> DecoderLayer:
            return stack(lambda rngs: DecoderLayer(config, dtypes, rngs), config.layers // groups, rngs)

        self.layers = stack(group, groups, rngs)
        self.norm = Norm(config.norm, {"norm": config.width}, eps=config.norm_eps, bias=config.bias, dtypes=dtypes)
