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
        if self.new is None:
            return self.base[...][tokens_BT].astype(self.dtype)
        is_new = tokens_BT >= self.vocab_size
        base = self.base[...][jnp.where(is_new, 0, tokens_BT)]
        new = self.new[...][jnp.where(is_new, tokens_BT - self.vocab_size, 0)]
        return jnp.where(is_new[..., None], new, base).astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V], base tokens first."""
        tables = [self.base_head, self.new_head] if self.base_head is not None else [self.base, self.new]
        weights = [gathered(table, self.dtype) for table in tables if table is not None]
        rows = hidden.reshape(-1, hidden.shape[-1]) if of_matrices() else hidden
        parts = [jnp.einsum("...d,vd->...v", rows, w, preferred_element_type=jnp.float32) for w in weights]
        logits = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        return logits.reshape(*hidden.shape[:-1], -1)
