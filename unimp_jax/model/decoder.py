"""The causal decoder with its embeddings and output head: GPT-NeoX, MPT, LLaMA or Qwen, by configuration."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.batch import Batch
from unimp_jax.model import cpu
from unimp_jax.model.attention import Kernel, KeysValues, attention, rotate, segment_mask
from unimp_jax.model.axes import constrain, gathered, splits
from unimp_jax.model.layers import (
    MLP,
    DTypes,
    Linear,
    MLPKind,
    Norm,
    NormKind,
    Sizes,
    dropout,
    normal,
    of_keys,
    parameter,
    stack,
)
from unimp_jax.model.rotary import RotaryScaling, frequencies

CONTENT_SCALE = 0.05
"""Initial scale of content projections: features of standard deviation 1 give rows of about this deviation."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the decoder; the defaults are RedPajama-INCITE-3B."""

    vocab_size: int = 50432
    """Rows of the base embedding table; ids from this number on are new tokens."""
    new_tokens: int = 0
    """Rows of the embedding table of new tokens."""
    content: int = 0
    """Number of frozen content features per new token, a projection of which is added to its row; 0 disables them."""
    interaction_features: int = 0
    """How many of the last content features describe interactions (popularity, ratings); they are 0 for new items."""
    free_row_dropout: float = 0.0
    """Probability, per token and training step, that a token with content is shown like a new item: by its content
    only, without its free row and interaction features. The projection thus learns to represent items that have no
    trained row."""
    width: int = 2560
    layers: int = 32
    heads: int = 32
    """Number of query heads; must divide width if `head_width` is None."""
    head_width: int | None = None
    """Width of each head; None: width / heads."""
    kv_heads: int | None = None
    """Number of key and value heads; must divide heads. None: the same as heads."""
    mlp_width: int = 10240
    norm: NormKind = "layer_norm"
    norm_eps: float = 1e-5
    bias: bool = True
    """Whether projections and layer norms have biases."""
    qkv_bias: bool = False
    """Whether query, key and value projections have biases regardless of `bias` (Qwen2)."""
    position: Literal["rotary", "alibi"] = "rotary"
    rotary_fraction: float = 1.0
    """Fraction of a head's channels, starting from the first, that are rotated."""
    rotary_base: float = 10000.0
    rotary_scaling: RotaryScaling = RotaryScaling()
    parallel_residual: bool = False
    """Whether attention and MLP read the same input and are both added to it (GPT-NeoX)."""
    mlp: MLPKind = "gelu"
    qk_norm: bool = False
    """Whether queries and keys are normalised, over all heads jointly (MPT)."""
    qk_norm_per_head: bool = False
    """With qk_norm: normalises each head separately, with one scale shared by all heads (Qwen3)."""
    tie_embeddings: bool = False
    """Whether the output head shares the embedding table."""
    dropout: float = 0.0
    """Dropout rate in training, on the embeddings and on the output of each sublayer."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.num_kv_heads, self.mlp_width) < 1:
            raise ValueError(f"decoder: every size must be at least 1, not {self}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"decoder: heads {self.heads} must divide width {self.width}")
        if self.head_width is not None and self.head_width < 1:
            raise ValueError(f"decoder: head_width {self.head_width} must be at least 1")
        if self.qk_norm_per_head and not self.qk_norm:
            raise ValueError("decoder: qk_norm_per_head needs qk_norm")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"decoder: kv_heads {self.kv_heads} must divide heads {self.heads}")
        if self.position == "rotary" and (not 0 < self.rotary_fraction <= 1 or self.rotary_width % 2):
            raise ValueError(
                f"decoder: rotary_fraction {self.rotary_fraction} of {self.head_dim} channels is "
                f"{self.rotary_width}; it must be an even number of at most {self.head_dim}"
            )
        for name in ("dropout", "free_row_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"decoder: {name} {getattr(self, name)} must be at least 0 and less than 1")
        if self.vocab_size < 1 or min(self.new_tokens, self.content) < 0:
            raise ValueError(
                f"decoder: vocab_size {self.vocab_size} must be above 0; new_tokens {self.new_tokens} and content "
                f"{self.content} must be at least 0"
            )
        if not 0 <= self.interaction_features <= self.content:
            raise ValueError(
                f"decoder: interaction_features {self.interaction_features} must be between 0 and content "
                f"{self.content}"
            )

    @property
    def without_content(self) -> Self:
        """The configuration of the same decoder after content has been added to the embedding tables."""
        return dataclasses.replace(self, content=0, interaction_features=0, free_row_dropout=0.0)

    @property
    def head_dim(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def rotary_width(self) -> int:
        return int(self.head_dim * self.rotary_fraction)


class TextContext(NamedTuple):
    """What a decoder layer needs to know about the tokens it processes.

    Attributes:
      angles: (cos, sin) of rotary positions, each [B, T, r]; None for other positions.
      attend: Maps (queries [B, A, H, h], keys [B, T, K, h], values [B, T, K, h]) of these tokens to [B, A, H, h]. It
        applies the attention mask and adds any other keys and values, such as a cache.
      query_positions_BA: int32, positions in the row of the only tokens that are queries; hidden states are computed
        for these only. None: all tokens are queries.
    """

    angles: tuple[jax.Array, jax.Array] | None
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    query_positions_BA: jax.Array | None = None

    def of_queries(self, x: jax.Array) -> jax.Array:
        """Selects the queries: [B, T, d] -> [B, A, d]."""
        if self.query_positions_BA is None:
            return x
        return jnp.take_along_axis(x, self.query_positions_BA[..., None], axis=1)


def angles_of(config: DecoderConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Returns (cos, sin), float32 [B, T, r], of the rotation angles of queries and keys; None if positions are not
    rotary."""
    if config.position != "rotary":
        return None
    per_position = frequencies(config.rotary_width, config.rotary_base, config.rotary_scaling)
    angles = positions_BT[..., None].astype(jnp.float32) * per_position
    return jnp.cos(angles), jnp.sin(angles)


def text_context(
    config: DecoderConfig, batch: Batch, kernel: Kernel, query_positions_BA: jax.Array | None = None
) -> TextContext:
    """Returns the context for whole rows, in which a token attends to itself and to earlier tokens of its segment."""
    mask = segment_mask(
        batch.segment_ids, batch.segment_ids, kernel, causal=True, query_positions_BA=query_positions_BA,
        alibi_positions_BT=batch.positions if config.position == "alibi" else None,
    )  # fmt: skip
    return TextContext(angles_of(config, batch.positions), functools.partial(attention, mask=mask), query_positions_BA)


class SelfAttention(nnx.Module):
    """Causal self-attention within segments."""

    def __init__(self, config: DecoderConfig, dtypes: DTypes, rngs: nnx.Rngs):
        embed, heads = {"embed": config.width}, {"heads": config.heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        bias = config.bias or config.qkv_bias
        self.query = Linear(embed, heads, bias=bias, dtypes=dtypes, rngs=rngs)
        self.key = Linear(embed, kv_heads, bias=bias, dtypes=dtypes, rngs=rngs)
        self.value = Linear(embed, kv_heads, bias=bias, dtypes=dtypes, rngs=rngs)
        scale = (2 * config.layers) ** -0.5
        self.out = Linear(heads, embed, bias=config.bias, dtypes=dtypes, rngs=rngs, scale=scale)

        def qk_norm(sizes: Sizes) -> Norm | None:
            if not config.qk_norm:
                return None
            sizes = {"head_dim": config.head_dim} if config.qk_norm_per_head else sizes
            return Norm(config.norm, sizes, eps=config.norm_eps, bias=config.bias, dtypes=dtypes)

        self.query_norm, self.key_norm = qk_norm(heads), qk_norm(kv_heads)

    def __call__(
        self, x_BTD: jax.Array, context: TextContext, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, KeysValues]:
        query = self.query(context.of_queries(x_BTD), dropout_key)
        key, value = self.key(x_BTD, dropout_key), self.value(x_BTD, dropout_key)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if context.angles is not None:
            cos, sin = context.angles
            query, key = rotate(query, (context.of_queries(cos), context.of_queries(sin))), rotate(key, context.angles)
        query = constrain(query, "batch", "sequence", "heads", None)
        key, value = (constrain(x, "batch", None, "kv_heads", None) for x in (key, value))
        return self.out(context.attend(query, key, value), dropout_key), KeysValues(key, value)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP with residual connections."""

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
        """Returns the hidden states of the queries, and the keys and values of all tokens; a key enables dropout."""
        keys = (None, None) if key is None else jnp.moveaxis(of_keys(jax.random.split, key), -1, 0)
        adapter_key = None if key is None else of_keys(lambda one: jax.random.fold_in(one, 2), key)
        attended, own = self.attention(self.attention_norm(x_BTD), context, adapter_key)
        before = context.of_queries(x_BTD)
        after = before + dropout(attended, self.dropout, keys[0])
        wide = self.mlp(self.mlp_norm(before if self.parallel else after), adapter_key)
        return constrain(after + dropout(wide, self.dropout, keys[1]), "batch", "sequence", None), own


class Decoder(nnx.Module):
    """The decoder layers, stacked as [groups, layers per group], and the final norm; `UniMP` runs them."""

    def __init__(self, config: DecoderConfig, groups: int, dtypes: DTypes, rngs: nnx.Rngs):
        def group(rngs: nnx.Rngs) -> DecoderLayer:
            return stack(lambda rngs: DecoderLayer(config, dtypes, rngs), config.layers // groups, rngs)

        self.layers = stack(group, groups, rngs)
        self.norm = Norm(config.norm, {"norm": config.width}, eps=config.norm_eps, bias=config.bias, dtypes=dtypes)


class EmbeddingTables(nnx.Module):
    """Embedding and output head as plain tables, with separate tables for base tokens and new tokens."""

    def __init__(
        self, vocab_size: int, dtype: str, base: nnx.Param, new: nnx.Param | None, base_head: nnx.Param | None,
        new_head: nnx.Param | None,
    ):  # fmt: skip
        """Wraps the tables.

        Args:
          base_head, new_head: None if the output head shares the embedding table.
        """
        self.vocab_size, self.dtype = vocab_size, dtype
        self.base, self.new, self.base_head, self.new_head = base, new, base_head, new_head

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """Embeds tokens: int32 [B, T] -> [B, T, D]."""
        return self._rows(self.base, self.new, tokens_BT)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns logits with base tokens first: [..., D] -> float32 [..., V]."""
        parts = self._logit_parts(hidden)
        return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)).reshape(*hidden.shape[:-1], -1)

    def logit_parts(self, hidden: jax.Array) -> list[jax.Array]:
        """Returns `logits` in parts, float32 [..., v] each, which stay split if the vocabulary is sharded."""
        if splits("vocab") == 1:
            return [self.logits(hidden)]
        return [part.reshape(*hidden.shape[:-1], -1) for part in self._logit_parts(hidden)]

    def _logit_parts(self, hidden: jax.Array) -> list[jax.Array]:
        weights = [gathered(table, self.dtype) for table in self._head if table is not None]
        rows = hidden.reshape(-1, hidden.shape[-1]) if cpu.of_matrices() else hidden
        return [jnp.einsum("...d,vd->...v", rows, w, preferred_element_type=jnp.float32) for w in weights]

    def logits_of(self, hidden: jax.Array, tokens_V: jax.Array) -> jax.Array:
        """Returns the logits of the given tokens (int32 [V]) only: [..., D] -> float32 [..., V]."""
        rows_VD = self.head_rows(tokens_V)
        return jnp.einsum("...d,vd->...v", hidden, rows_VD, preferred_element_type=jnp.float32)

    def head_rows(self, tokens: jax.Array) -> jax.Array:
        """Returns rows of the output head: int32 [...] -> [..., D]."""
        return self._rows(*self._head, tokens)

    def new_head_by_shard(self) -> jax.Array:
        """Returns the head's rows of new tokens as sharded over N devices, [N, C, D]."""
        new = self._head[1]
        assert new is not None
        rows_VD = gathered(new, self.dtype)
        shards_NCD = rows_VD.reshape(splits("new_vocab"), -1, rows_VD.shape[1])
        return constrain(shards_NCD, "new_vocab", None, None)

    def without_new(self) -> "EmbeddingTables":
        """Returns the tables with base tokens only."""
        return EmbeddingTables(self.vocab_size, self.dtype, self.base, None, self.base_head, None)

    @property
    def _head(self) -> tuple[nnx.Param, nnx.Param | None]:
        """The output head's tables of base tokens and of new tokens."""
        return (self.base, self.new) if self.base_head is None else (self.base_head, self.new_head)

    def _rows(self, base: nnx.Param, new: nnx.Param | None, tokens: jax.Array) -> jax.Array:
        """Looks up rows in a pair of tables: int32 [...] -> [..., D]."""

        def rows(table: nnx.Param, numbers: jax.Array) -> jax.Array:
            # The constraint also shards gradients like the table, so that no device holds a whole one.
            return constrain(table[...], *table.get_metadata("axis_names"))[numbers]

        if new is None:
            return rows(base, tokens).astype(self.dtype)
        is_new = tokens >= self.vocab_size
        of_base = rows(base, jnp.where(is_new, 0, tokens))
        of_new = rows(new, jnp.where(is_new, tokens - self.vocab_size, 0))
        return jnp.where(is_new[..., None], of_new, of_base).astype(self.dtype)


class FrozenTable(nnx.Variable):
    """Features that no part trains."""


class Embeddings(nnx.Module):
    """The parameters from which the tables of the embedding and the output head are computed.

    New tokens have their own tables, so that the base tables can stay unchanged. With content, the row of a new token
    is a free row plus a projection of its content features, which generalises from one item to similar ones.
    """

    def __init__(self, config: DecoderConfig, dtypes: DTypes, rngs: nnx.Rngs):
        self.vocab_size, self.dtype = config.vocab_size, dtypes.compute
        self.interaction_features, self.free_row_dropout = config.interaction_features, config.free_row_dropout
        base = {"vocab": config.vocab_size, "embed": config.width}
        new = {"new_vocab": config.new_tokens, "embed": config.width}
        tied = config.tie_embeddings
        self.base = normal(rngs, base, 0.02, dtypes)
        self.new = normal(rngs, new, 0.02, dtypes) if config.new_tokens else None
        self.base_head = None if tied else normal(rngs, base, 0.02, dtypes)
        self.new_head = normal(rngs, new, 0.02, dtypes) if config.new_tokens and not tied else None
        has_content = bool(config.content and config.new_tokens)
        features = jnp.zeros((config.new_tokens, config.content), dtypes.parameter)  # until a catalogue's are set
        projection = {"content": config.content, "embed": config.width}
        deviation = CONTENT_SCALE / math.sqrt(max(config.content, 1))
        self.content = FrozenTable(features, axis_names=("new_vocab", "content")) if has_content else None
        self.projection = normal(rngs, projection, deviation, dtypes) if has_content else None
        self.head_projection = normal(rngs, projection, deviation, dtypes) if has_content and not tied else None

    def tables(self, dropout_key: jax.Array | None = None, added_NK: jax.Array | None = None) -> EmbeddingTables:
        """Computes the tables; rows of new tokens include their projected content.

        Free rows are not scaled up to compensate for dropped ones: a row in training then equals a row at inference,
        with the free row for a trained item and without it for a new item.

        Args:
          dropout_key: If given and `free_row_dropout` is above 0, some tokens are shown as if they were new, in
            embedding and head alike.
          added_NK: Content of additional tokens, appended after the others; their rows are the projected content only.
        """
        shown_VK = dropped_V1 = None
        if self.content is not None:
            shown_VK = self.content[...]
            if dropout_key is not None and self.free_row_dropout:
                draws_V1 = jax.random.bits(dropout_key, (len(shown_VK), 1), jnp.uint16)
                has_content_V1 = jnp.any(shown_VK != 0, axis=1, keepdims=True)
                dropped_V1 = (draws_V1 < round(self.free_row_dropout * 2**16)) & has_content_V1
                of_interactions_K = jnp.arange(shown_VK.shape[1]) >= shown_VK.shape[1] - self.interaction_features
                shown_VK = jnp.where(dropped_V1 & of_interactions_K, 0, shown_VK)

        def with_content(free_VD: nnx.Param | None, projection_KD: nnx.Param | None) -> nnx.Param | None:
            if free_VD is None or projection_KD is None or shown_VK is None:
                return free_VD
            added_VD = jnp.einsum("vk,kd->vd", shown_VK.astype(free_VD.dtype), projection_KD[...])
            kept_VD = free_VD[...] if dropped_V1 is None else jnp.where(dropped_V1, 0, free_VD[...])
            rows_VD = kept_VD + added_VD
            if added_NK is not None:
                rows_VD = jnp.concatenate([rows_VD, added_NK.astype(rows_VD.dtype) @ projection_KD[...]])
            return parameter(rows_VD, free_VD.get_metadata("axis_names"))

        new, new_head = with_content(self.new, self.projection), with_content(self.new_head, self.head_projection)
        return EmbeddingTables(self.vocab_size, self.dtype, self.base, new, self.base_head, new_head)
