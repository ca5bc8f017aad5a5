"""Prefill and decode step, the building blocks of all decoding, and the KV cache between them.

Prompts are packed in rows, as in training. Keys and values of a prompt's tokens and images are computed once and never
moved; all continuations of all prompts of a row attend to them together, each to its own prompt's part. Keys and values
of a continuation are stored by the step and the beam index at which its tokens were chosen. A mask records which beam
descends from which, so that reordering beams copies no keys or values.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.model import ModelConfig, UniMP
from unimp_jax.model.attention import MASKED, KeysValues, alibi_slopes
from unimp_jax.model.axes import constrain
from unimp_jax.model.decoder import TextContext, angles_of
from unimp_jax.model.layers import scan
from unimp_jax.model.unimp import Group


@flax.struct.dataclass
class PromptCache:
    """Keys and values of the prompts of B rows, and the metadata that their continuations need.

    Attributes:
      text: Keys and values of the tokens in every layer, [G, E, B, K, T, h].
      images: Those of the latents that any continuation attends to, [G, B, S, H, h]; None where images are tokens.
      positions_BT: int32, positions of the tokens.
      mask_BAT: bool, the tokens of each prompt.
      image_mask_BAS: bool, the latents that each prompt's continuations attend to; None where images are tokens.
      lengths_BA: int32, the position of the first token of an answer.
      used_BA: bool, False for a slot without a prompt.
    """

    text: KeysValues
    images: KeysValues | None
    positions_BT: jax.Array
    mask_BAT: jax.Array
    image_mask_BAS: jax.Array | None
    lengths_BA: jax.Array
    used_BA: jax.Array


@flax.struct.dataclass
class AnswerCache:
    """Keys and values of W continuations of each prompt.

    Attributes:
      text: Keys and values in every layer, by step and beam index, [G, E, B, A, K, n, W, h].
      mask_BAWnV: bool, whether continuation W descends from the token chosen at a step in beam V.
    """

    text: KeysValues
    mask_BAWnV: jax.Array

    def reorder(self, parents_BAW: jax.Array) -> Self:
        """Returns a cache in which each beam continues the beam given by `parents_BAW`, int32."""
        mask_BAWnV = jnp.take_along_axis(self.mask_BAWnV, parents_BAW[..., None, None], axis=2)
        return dataclasses.replace(self, mask_BAWnV=mask_BAWnV)


def prefill(model: UniMP, batch: Batch, latents_BNLC: jax.Array | None = None) -> tuple[jax.Array, PromptCache]:
    """Processes the prompts in one pass.

    Args:
      batch: Prompts that end at `answer_positions`, one per slot; weight 0 marks an empty slot.
      latents_BNLC: Latents of the images, if already computed; `batch.images` itself is not read then.

    Returns:
      (the hidden state [B, A, D] from which the first token of each answer is predicted, the prompts' cache).
    """
    hidden_BAD, (text, images) = model.forward(batch, None, latents_BNLC, answers_only=True, cached=True)

    def at_end(x: jax.Array) -> jax.Array:
        """Selects each prompt's last token: [B, T, …] -> [B, A, …]."""
        return jax.vmap(lambda row, positions: row[positions])(x, batch.answer_positions)

    segment_ids_BA = at_end(batch.segment_ids)
    images, image_mask_BAS = (None, None) if images is None else _of_prompts(model, batch, images, at_end)
    return hidden_BAD, PromptCache(
        text=text,
        images=images,
        positions_BT=batch.positions,
        mask_BAT=(segment_ids_BA[..., None] == batch.segment_ids[:, None]) & (segment_ids_BA > 0)[..., None],
        image_mask_BAS=image_mask_BAS,
        lengths_BA=at_end(batch.positions) + 1,
        used_BA=batch.answer_weights > 0,
    )


def _of_prompts(
    model: UniMP, batch: Batch, images: KeysValues, at_end: Callable[[jax.Array], jax.Array]
) -> tuple[KeysValues, jax.Array]:
    """Returns (keys and values of the latents that any continuation attends to, bool [B, A, S] which of them each
    prompt's continuations attend to); `at_end` selects each prompt's last token: [B, T, …] -> [B, A, …]."""
    config, image_mask_BAN = model.config, at_end(model.image_mask(batch))
    (_, A, N), L = image_mask_BAN.shape, config.resampler.latents
    if config.gated.attend == "last_image" and A < N:  # only each prompt's one image, in a slot of its own
        index_BA = jnp.maximum(at_end(batch.image_index), 0)

        def own(x_GBSHh: jax.Array) -> jax.Array:
            G, B, _, *head = x_GBSHh.shape
            x_GBNLHh = x_GBSHh.reshape(G, B, N, L, *head)
            x_GBALHh = jax.vmap(lambda row, images: row[:, images], (1, 0), 1)(x_GBNLHh, index_BA)
            return x_GBALHh.reshape(G, B, A * L, *head)

        images = jax.tree.map(own, images)
        image_mask_BAN = image_mask_BAN.any(-1, keepdims=True) & jnp.eye(A, dtype=bool)
    return images, jnp.repeat(image_mask_BAN, L, axis=-1)


def empty_cache(config: ModelConfig, prompts: PromptCache, beams: int, steps: int) -> AnswerCache:
    """Returns an empty cache for `beams` continuations of each prompt, of up to `steps` tokens."""
    decoder, steps = config.decoder, max(steps, 1)
    B, A = prompts.lengths_BA.shape
    shape = (config.groups, config.group_layers, B, A, decoder.num_kv_heads, steps, beams, decoder.head_dim)
    empty = jnp.zeros(shape, config.compute_dtype)
    return AnswerCache(KeysValues(empty, empty), jnp.zeros((B, A, beams, steps, beams), bool))


def decode_step(
    model: UniMP, prompts: PromptCache, cache: AnswerCache, tokens_BAW: jax.Array, step: jax.Array | int
) -> tuple[jax.Array, AnswerCache]:
    """Processes the `step`-th token (from 0) of every continuation: returns (the hidden state [B, A, W, D] from which
    the next token is predicted, the cache with this token)."""
    config = model.config
    B, A, W = tokens_BAW.shape
    angles = angles_of(config.decoder, jnp.repeat(prompts.lengths_BA + step, W, axis=1))
    image_mask_BQS = None if prompts.image_mask_BAS is None else jnp.repeat(prompts.image_mask_BAS, W, axis=1)

    def group(
        x_BQD: jax.Array, modules: Group, prompt: KeysValues, images: KeysValues | None, past: KeysValues
    ) -> tuple[jax.Array, KeysValues]:
        def context(i: int) -> TextContext:
            own, before = (jax.tree.map(lambda x: x[i], kept) for kept in (prompt, past))
            alibi = config.decoder.position == "alibi"
            return TextContext(
                angles, functools.partial(attend_to_caches, own, before, prompts, cache.mask_BAWnV, step, alibi=alibi)
            )

        return model.group(
            x_BQD, modules, images, image_mask_BQS, [(context(i), None) for i in range(config.group_layers)]
        )

    x_BQD = model.embed(tokens_BAW.reshape(B, A * W))
    x_BQD, new = scan(group, x_BQD, model.groups, prompts.text, prompts.images, cache.text)

    def write(kept: jax.Array, new_GEBQKh: jax.Array) -> jax.Array:
        new_GEBAKWh = new_GEBQKh.reshape(*new_GEBQKh.shape[:3], A, W, *new_GEBQKh.shape[4:]).swapaxes(4, 5)
        return jax.lax.dynamic_update_slice_in_dim(kept, new_GEBAKWh[:, :, :, :, :, None], step, axis=5)

    now_nV = jnp.arange(cache.mask_BAWnV.shape[3])[:, None] == step
    mask_BAWnV = cache.mask_BAWnV | (now_nV & jnp.eye(W, dtype=bool)[:, None])
    hidden_BAWD = model.decoder.norm(x_BQD).reshape(B, A, W, -1)
    return hidden_BAWD, AnswerCache(jax.tree.map(write, cache.text, new), mask_BAWnV)


def attend_to_caches(
    prompt: KeysValues, past: KeysValues, prompts: PromptCache, mask_BAWnV: jax.Array, step: jax.Array | int,
    query_BQHh: jax.Array, key_BQKh: jax.Array, value_BQKh: jax.Array, *, alibi: bool,
) -> jax.Array:  # fmt: skip
    """Computes the attention, [B, Q, H, h], of continuations to their prompt ([B, K, T, h] each), their own earlier
    tokens ([B, A, K, n, W, h] each) and themselves, in one softmax."""
    B, A, W, n, _ = mask_BAWnV.shape
    H, h = query_BQHh.shape[2:]
    K, T = prompt.keys.shape[1:3]
    query_BKkAWh = jnp.einsum("bawkgh->bkgawh", (query_BQHh * h**-0.5).reshape(B, A, W, K, H // K, h))
    past = jax.tree.map(lambda x: x.reshape(B, A, K, n * W, h), past)
    own = KeysValues(*(x.reshape(B, A, W, K, h) for x in (key_BQKh, value_BQKh)))
    f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def joined(to_prompt: jax.Array, to_past: jax.Array, to_self: jax.Array) -> jax.Array:
        """Broadcasts and concatenates values of the three parts of the keys: [..., W, T + n W + 1]."""
        parts = (to_prompt, to_past, to_self)
        common = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return jnp.concatenate([jnp.broadcast_to(part, (*common, part.shape[-1])) for part in parts], axis=-1)

    scores_BKkAWS = joined(
        f32("bkgawh,bkth->bkgawt", query_BKkAWh, prompt.keys),
        f32("bkgawh,bakmh->bkgawm", query_BKkAWh, past.keys),
        f32("bkgawh,bawkh->bkgaw", query_BKkAWh, own.keys)[..., None],
    )
    if alibi:
        behind_BAT = prompts.positions_BT[:, None] - (prompts.lengths_BA + step)[..., None]
        behind_BAWS = joined(
            behind_BAT[:, :, None], jnp.repeat(jnp.arange(n) - step, W)[None], jnp.zeros((W, 1), jnp.int32)
        )
        slopes_Kk111 = jnp.asarray(alibi_slopes(H)).reshape(K, H // K, 1, 1, 1)
        scores_BKkAWS = scores_BKkAWS + slopes_Kk111 * behind_BAWS[:, None, None]
    mask_BAWS = joined(prompts.mask_BAT[:, :, None], mask_BAWnV.reshape(B, A, W, n * W), jnp.ones((W, 1), bool))
    weights_BKkAWS = jax.nn.softmax(jnp.where(mask_BAWS[:, None, None], scores_BKkAWS, MASKED), axis=-1)
    to_prompt, to_past, to_self = jnp.split(weights_BKkAWS.astype(value_BQKh.dtype), [T, T + n * W], axis=-1)
    out_BKkAWh = f32("bkgawt,bkth->bkgawh", to_prompt, prompt.values)
    out_BKkAWh += f32("bkgawm,bakmh->bkgawh", to_past, past.values)
    out_BKkAWh += f32("bkgawm,bawkh->bkgawh", to_self, own.values)
    out_BQHh = jnp.einsum("bkgawh->bawkgh", out_BKkAWh.astype(value_BQKh.dtype)).reshape(B, A * W, H, h)
    return constrain(out_BQHh, "batch", None, "heads", None)
