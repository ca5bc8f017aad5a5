"""Prompts read once, and what continues them one token at a time: the two steps that all decoding is made of.

Prompts lie packed in rows, as everywhere. What a prompt's tokens and images show to what follows is computed once and
kept where it is; all continuations of all prompts of a row look at it together, each at its own prompt's part. What a
continuation has said lies by the step at which, and the place in the beam in which, it was said; who descends from whom
is a mask, so that nothing is ever copied when a beam is reordered.

Beside the letters of `unimp_jax.batch`: A prompts of a row, W continuations of a prompt, Q = A W of them in a row,
n tokens that a continuation can say, E layers of a group, k query heads that share a key head.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.model import ModelConfig, UniMP
from unimp_jax.model.attention import MASKED, KeysValues
from unimp_jax.model.axes import constrain
from unimp_jax.model.decoder import TextContext, angles_of, answer_context, text_context
from unimp_jax.model.positions import alibi_slopes
from unimp_jax.model.stacking import scan
from unimp_jax.model.unimp import Group


@flax.struct.dataclass
class Prompts:
    """What the prompts of B rows show to their continuations.

    Attributes:
      text: of every layer's tokens: [G, E, B, K, T, h].
      images: of the images that any continuation can see: [G, B, S, H, h].
      positions_BT: int32, of the tokens.
      sees_BAT: bool, the tokens of each prompt.
      sees_images_BAS: bool, the latents that each prompt's continuations see.
      lengths_BA: int32, the position of the first token of an answer.
      asked_BA: bool, False for a slot without a prompt.
    """

    text: KeysValues
    images: KeysValues
    positions_BT: jax.Array
    sees_BAT: jax.Array
    sees_images_BAS: jax.Array
    lengths_BA: jax.Array
    asked_BA: jax.Array


@flax.struct.dataclass
class Said:
    """What W continuations of each prompt have said.

    Attributes:
      text: of every layer, by step and place in the beam: [G, E, B, A, K, n, W, h].
      sees_BAWnV: bool, whether what was said at a step, in place V of the beam, belongs to continuation W.
    """

    text: KeysValues
    sees_BAWnV: jax.Array

    def follow(self, parents_BAW: jax.Array) -> Said:
        """Each place of the beam taken over by a continuation of that of `parents_BAW`, int32."""
        sees_BAWnV = jnp.take_along_axis(self.sees_BAWnV, parents_BAW[..., None, None], axis=2)
        return dataclasses.replace(self, sees_BAWnV=sees_BAWnV)


def read(model: UniMP, batch: Batch, latents_BNLC: jax.Array | None = None) -> tuple[jax.Array, Prompts]:
    """Prefill: the whole rows at once.

    Args:
      batch: prompts that end at `answer_positions`, one a slot; weight 0 marks an empty slot.
      latents_BNLC: the images', where they are at hand; `batch.images` itself is not looked at then.

    Returns:
      (the hidden state [B, A, D] that the first token of each answer is read from, what is kept of the prompts).
    """
    config = model.config
    latents_BNLC = model.encode_images(batch.images) if latents_BNLC is None else latents_BNLC
    B, N, L, C = latents_BNLC.shape
    latents_BSC = latents_BNLC.reshape(B, N * L, C)
    image_mask_BTN = model.image_mask(batch)
    sees_images = model.sees_images(batch)
    context = text_context(config.decoder, batch.positions, batch.segment_ids, model.kernel)
    ends = answer_context(config.decoder, batch.positions, batch.segment_ids, batch.answer_positions)

    def group(
        contexts: list[TextContext], x_BTD: jax.Array, modules: Group
    ) -> tuple[jax.Array, tuple[KeysValues, KeysValues]]:
        images = modules[0].shown(latents_BSC)
        keyless = [(context, None) for context in contexts]
        x_BTD, shown = model.group(x_BTD, modules, images, sees_images, keyless)
        return x_BTD, (jax.tree.map(lambda *x: jnp.stack(x).swapaxes(2, 3), *shown), images)

    every = functools.partial(group, [context] * config.gated.every)
    last = functools.partial(group, [*[context] * (config.gated.every - 1), ends])  # nothing reads the other tokens
    x_BAD, (text, images) = scan(every, model.embed(batch.tokens), model.groups, last=last)

    def at_end(x: jax.Array) -> jax.Array:
        """[B, T, …] -> [B, A, …], of each prompt's last token."""
        return jax.vmap(lambda row, places: row[places])(x, batch.answer_positions)

    hidden_BAD = model.decoder.norm(x_BAD)
    segments_BA = at_end(batch.segment_ids)
    sees_images_BAN = at_end(image_mask_BTN)
    A = segments_BA.shape[1]
    if config.gated.attend == "last_image" and A < N:  # each prompt's one image, in a place of its own
        index_BA = jnp.maximum(at_end(batch.image_index), 0)

        def own(x_GBSHh: jax.Array) -> jax.Array:
            G, B, _, *head = x_GBSHh.shape
            x_GBNLHh = x_GBSHh.reshape(G, B, N, L, *head)
            x_GBALHh = jax.vmap(lambda row, places: row[:, places], (1, 0), 1)(x_GBNLHh, index_BA)
            return x_GBALHh.reshape(G, B, A * L, *head)

        images = jax.tree.map(own, images)
        sees_images_BAN = sees_images_BAN.any(-1, keepdims=True) & jnp.eye(A, dtype=bool)
    return hidden_BAD, Prompts(
        text=text,
        images=images,
        positions_BT=batch.positions,
        sees_BAT=(segments_BA[..., None] == batch.segment_ids[:, None]) & (segments_BA > 0)[..., None],
        sees_images_BAS=jnp.repeat(sees_images_BAN, L, axis=-1),
        lengths_BA=at_end(batch.positions) + 1,
        asked_BA=batch.answer_weights > 0,
    )


def nothing_said(config: ModelConfig, prompts: Prompts, beams: int, steps: int) -> Said:
    """Room for `beams` continuations of each prompt, of up to `steps` tokens."""
    decoder = config.decoder
    B, A = prompts.lengths_BA.shape
    empty = jnp.zeros(
        (config.groups, config.gated.every, B, A, decoder.num_kv_heads, max(steps, 1), beams, decoder.head_dim),
        config.compute_dtype,
    )  # fmt: skip
    return Said(KeysValues(empty, empty), jnp.zeros((B, A, beams, max(steps, 1), beams), bool))


def say(
    model: UniMP, prompts: Prompts, said: Said, tokens_BAW: jax.Array, step: jax.Array | int
) -> tuple[jax.Array, Said]:
    """Decode: the `step`-th token (from 0) of every continuation.

    Returns:
      (the hidden state [B, A, W, D] that the token after it is read from, what has been said now).
    """
    config = model.config
    B, A, W = tokens_BAW.shape
    positions_BQ = jnp.repeat(prompts.lengths_BA + step, W, axis=1)
    angles = angles_of(config.decoder, positions_BQ)
    image_mask_BQS = jnp.repeat(prompts.sees_images_BAS, W, axis=1)

    def group(
        x_BQD: jax.Array, modules: Group, prompt: KeysValues, images: KeysValues, past: KeysValues
    ) -> tuple[jax.Array, KeysValues]:
        contexts = []
        for i in range(config.gated.every):
            attend = functools.partial(
                look_back, jax.tree.map(lambda x: x[i], prompt), jax.tree.map(lambda x: x[i], past),  # noqa: B023
                prompts, said.sees_BAWnV, step, alibi=config.decoder.position == "alibi",
            )  # fmt: skip
            contexts.append((TextContext(angles, attend), None))
        x_BQD, shown = model.group(x_BQD, modules, images, image_mask_BQS, contexts)
        return x_BQD, jax.tree.map(lambda *x: jnp.stack(x), *shown)

    x_BQD = model.embed(tokens_BAW.reshape(B, A * W))
    x_BQD, new = scan(group, x_BQD, model.groups, prompts.text, prompts.images, said.text)

    def write(kept: jax.Array, new_GEBQKh: jax.Array) -> jax.Array:
        new_GEBAKWh = new_GEBQKh.reshape(*new_GEBQKh.shape[:3], A, W, *new_GEBQKh.shape[4:]).swapaxes(4, 5)
        return jax.lax.dynamic_update_slice_in_dim(kept, new_GEBAKWh[:, :, :, :, :, None], step, axis=5)

    now_nV = jnp.arange(said.sees_BAWnV.shape[3])[:, None] == step
    sees_BAWnV = said.sees_BAWnV | (now_nV & jnp.eye(W, dtype=bool)[:, None])
    hidden_BAWD = model.decoder.norm(x_BQD).reshape(B, A, W, -1)
    return hidden_BAWD, Said(jax.tree.map(write, said.text, new), sees_BAWnV)


def look_back(
    prompt: KeysValues, past: KeysValues, prompts: Prompts, sees_BAWnV: jax.Array, step: jax.Array | int,
    query_BQHh: jax.Array, key_BQKh: jax.Array, value_BQKh: jax.Array, *, alibi: bool,
) -> jax.Array:  # fmt: skip
    """Attention of continuations to their prompt, to what they have said and to themselves: one softmax, three parts.

    Args:
      prompt: [B, K, T, h] each.
      past: [B, A, K, n, W, h] each.

    Returns:
      [B, Q, H, h].
    """
    B, A, W, n, _ = sees_BAWnV.shape
    H, h = query_BQHh.shape[2:]
    K = key_BQKh.shape[2]
    query_BKkAWh = (query_BQHh * h**-0.5).reshape(B, A, W, K, H // K, h).transpose(0, 3, 4, 1, 2, 5)
    own_BKAWh = key_BQKh.reshape(B, A, W, K, h).transpose(0, 3, 1, 2, 4)
    own_value_BKAWh = value_BQKh.reshape(B, A, W, K, h).transpose(0, 3, 1, 2, 4)
    f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    to_prompt = f32("bkgawh,bkth->bkgawt", query_BKkAWh, prompt.keys)
    to_past = f32("bkgawh,baknvh->bkgawnv", query_BKkAWh, past.keys)
    to_self = f32("bkgawh,bkawh->bkgaw", query_BKkAWh, own_BKAWh)
    if alibi:
        slopes_KkAWS = jnp.asarray(alibi_slopes(H)).reshape(K, H // K, 1, 1, 1)
        behind_BAT = prompts.positions_BT[:, None] - (prompts.lengths_BA + step)[..., None]
        to_prompt = to_prompt + slopes_KkAWS * behind_BAT[:, None, None, :, None]
        to_past = to_past + slopes_KkAWS[..., None] * (jnp.arange(n) - step)[:, None]
    to_prompt = jnp.where(prompts.sees_BAT[:, None, None, :, None], to_prompt, MASKED)
    to_past = jnp.where(sees_BAWnV[:, None, None], to_past, MASKED)

    largest = jnp.maximum(jnp.maximum(to_prompt.max(-1), to_past.max((-1, -2))), to_self)
    prompt_weights = jnp.exp(to_prompt - largest[..., None])
    past_weights = jnp.exp(to_past - largest[..., None, None])
    self_weights = jnp.exp(to_self - largest)
    total = prompt_weights.sum(-1) + past_weights.sum((-1, -2)) + self_weights
    dtype = value_BQKh.dtype
    out = f32("bkgawt,bkth->bkgawh", prompt_weights.astype(dtype), prompt.values)
    out += f32("bkgawnv,baknvh->bkgawh", past_weights.astype(dtype), past.values)
    out += self_weights[..., None] * own_value_BKAWh[:, :, None]
    out_BKkAWh = (out / total[..., None]).astype(dtype)
    out_BQHh = out_BKkAWh.transpose(0, 3, 4, 1, 2, 5).reshape(B, A * W, H, h)
    return constrain(out_BQHh, "batch", None, "heads", None)
