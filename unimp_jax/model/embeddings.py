"""Tokens in, logits out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.axes import gathered
from unimp_jax.model.decoder import DecoderConfig
from unimp_jax.model.layers import DTypes, normal, of_matrices


class Embeddings(nnx.Module):
    """Embedding and output head. New tokens have tables of their own, so that the base ones can stay as they are."""

    def __init__(self, config: DecoderConfig, dtypes: DTypes, rngs: nnx.Rngs):
        self.vocab_size, self.dtype = config.vocab_size, dtypes.compute
        base = {"vocab": config.vocab_size, "embed": config.width}
        new = {"new_vocab": config.new_tokens, "embed": config.width}
        tied = config.tie_embeddings
        self.base = normal(rngs, base, 0.02, dtypes)
        self.new = normal(rngs, new, 0.02, dtypes) if config.new_tokens else None
        self.base_head = None if tied else normal(rngs, base, 0.02, dtypes)
        self.new_head = normal(rngs, new, 0.02, dtypes) if config.new_tokens and not tied else None

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, D]."""
        return self._rows(self.base, self.new, tokens_BT)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V], base tokens first."""
        weights = [gathered(table, self.dtype) for table in self._head if table is not None]
        rows = hidden.reshape(-1, hidden.shape[-1]) if of_matrices() else hidden
        parts = [jnp.einsum("...d,vd->...v", rows, w, preferred_element_type=jnp.float32) for w in weights]
        logits = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        return logits.reshape(*hidden.shape[:-1], -1)

    def logits_of(self, hidden: jax.Array, tokens_V: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V], of the tokens that are named (int32 [V]) alone."""
        rows_VD = self._rows(*self._head, tokens_V)
        return jnp.einsum("...d,vd->...v", hidden, rows_VD, preferred_element_type=jnp.float32)

    @property
    def _head(self) -> tuple[nnx.Param, nnx.Param | None]:
        """The tables of the output head, those of base tokens and of new ones."""
        return (self.base, self.new) if self.base_head is None else (self.base_head, self.new_head)

    def _rows(self, base: nnx.Param, new: nnx.Param | None, tokens: jax.Array) -> jax.Array:
        """int32 [...] -> [..., D], from a pair of tables."""
        if new is None:
            return base[...][tokens].astype(self.dtype)
        is_new = tokens >= self.vocab_size
        of_base = base[...][jnp.where(is_new, 0, tokens)]
        of_new = new[...][jnp.where(is_new, tokens - self.vocab_size, 0)]
        return jnp.where(is_new[..., None], of_new, of_base).astype(self.dtype)
