"""Greedy decoding in its plainest form: the whole prefix is computed anew for every token, without a cache.

It is exact, and slow; the ranking of a catalogue (`unimp_jax.evaluation.harness`) needs none of it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.model import UniMP


def greedy(model: UniMP, prompts: Batch, new_tokens: int, *, eos: int | None = None, pad: int = 0) -> jax.Array:
    """The most probable next token, again and again; jittable, with `new_tokens` static.

    Args:
      prompts: one segment a row, from its first slot on, and behind the longest at least `new_tokens` slots free.
      eos: what ends an answer; None: nothing does.
      pad: what stands behind the end of an answer.

    Returns:
      int32 [B, new_tokens].
    """
    B = prompts.tokens.shape[0]
    rows, lengths_B = jnp.arange(B), (prompts.segment_ids > 0).sum(1)
    latents_BNLC = model.encode_images(prompts.images)
    last_image_B = prompts.image_index[rows, lengths_B - 1]

    def write(number: jax.Array, carry: tuple[Batch, jax.Array, jax.Array]) -> tuple[Batch, jax.Array, jax.Array]:
        batch, answers, ended_B = carry
        place_B = lengths_B + number
        hidden_BTD = model.hidden(batch, latents_BNLC=latents_BNLC)
        next_B = model.logits(hidden_BTD[rows, place_B - 1]).argmax(-1).astype(jnp.int32)
        next_B = jnp.where(ended_B, pad, next_B)
        batch = dataclasses.replace(
            batch,
            tokens=batch.tokens.at[rows, place_B].set(next_B),
            segment_ids=batch.segment_ids.at[rows, place_B].set(1),
            positions=batch.positions.at[rows, place_B].set(place_B),
            image_index=batch.image_index.at[rows, place_B].set(last_image_B),
        )
        ended_B = ended_B | (next_B == eos) if eos is not None else ended_B
        return batch, answers.at[:, number].set(next_B), ended_B

    answers = jnp.full((B, new_tokens), pad, jnp.int32)
    return jax.lax.fori_loop(0, new_tokens, write, (prompts, answers, jnp.zeros(B, bool)))[1]
