"""The whole model: images and text in, logits at the answers out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.batch import Batch
from unimp_jax.model.attention import KeysValues, Segments, earlier_images_mask, last_image_mask, segments
from unimp_jax.model.axes import constrain, splits
from unimp_jax.model.decoder import Decoder, DecoderConfig, DecoderLayer, TextContext, answer_context, text_context
from unimp_jax.model.embeddings import Embeddings
from unimp_jax.model.gated import GatedCrossAttention, GatedCrossAttentionConfig
from unimp_jax.model.kernels import Kernel, kernel_for
from unimp_jax.model.layers import DTypes, dropout
from unimp_jax.model.resampler import Resampler, ResamplerConfig
from unimp_jax.model.stacking import Loop, Remat, scan, stack, unstack
from unimp_jax.model.vision import VisionConfig, VisionTower


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Geometry and arithmetic of the whole model."""

    vision: VisionConfig = VisionConfig()
    resampler: ResamplerConfig = ResamplerConfig()
    gated: GatedCrossAttentionConfig = GatedCrossAttentionConfig()
    decoder: DecoderConfig = DecoderConfig()
    compute_dtype: str = "bfloat16"
    """Of activations and products; norms, softmax and logits are float32 whatever this says."""
    param_dtype: str = "float32"
    """Of parameters; in training, what trains is float32, and what does not is of `compute_dtype`."""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """What computes attention of text where shapes and types allow it: splash on TPUs, cuDNN on NVIDIA GPUs, XLA
    elsewhere (and wherever they do not, and among the few tokens of an image)."""
    remat: Remat = "none"
    """What the backward pass keeps of each layer or group, and what it computes again."""
    unroll: int = 1
    """So many layers or groups are written out a turn of their loop, up to all, for a larger program: fewer copies of
    what is kept for the backward pass, which on CPUs is a fifth of a step; and where all are, the last layer computes
    only what answers are read from."""

    def __post_init__(self) -> None:
        if self.decoder.layers % self.gated.every:
            raise ValueError(f"model: gated.every {self.gated.every} must divide decoder.layers {self.decoder.layers}")
        if self.unroll < 1:
            raise ValueError(f"model: unroll {self.unroll} must be 1 or more")
        for name in ("compute_dtype", "param_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"model: {name} {getattr(self, name)!r} must be float32 or bfloat16")

    @property
    def groups(self) -> int:
        """Groups of decoder layers, each with one gated block."""
        return self.decoder.layers // self.gated.every

    @property
    def last_layer_apart(self) -> bool:
        """Whether the last layer is not in a loop, where to be done apart it would need a copy of all the others'
        parameters."""
        return self.unroll >= self.groups

    @property
    def loop(self) -> Loop:
        """How all stacks are run."""
        return Loop(self.remat, self.unroll)


Part = Literal["vision", "resampler", "gated", "decoder", "embeddings"]
PARTS: tuple[Part, ...] = ("vision", "resampler", "gated", "decoder", "embeddings")
"""The attributes of `UniMP`, each of which trains or stays frozen as a whole."""


def part_of(path: Sequence[Any]) -> Part:
    """The part that a parameter belongs to, from its path as `nnx.split` or `jax.tree_util` gives it.

    Raises:
      ValueError: the path does not start at a part.
    """
    first = path[0]
    name = getattr(first, "key", getattr(first, "name", first))
    if name not in PARTS:
        raise ValueError(f"{name!r} is no part of the model; the parts are {', '.join(PARTS)}")
    return name


Group = tuple[GatedCrossAttention, DecoderLayer]
"""A gated block, and the layers of its group, stacked."""


class UniMP(nnx.Module):
    """Vision tower -> resampler -> decoder with gated cross-attention (OpenFlamingo, arXiv:2308.01390).

    Its attributes are the five `PARTS`; `gated` is stacked, one block a group, and `embeddings` has the output head.
    A call changes nothing and keeps no random state.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtypes = DTypes(config.param_dtype, config.compute_dtype)
        width, latent_width = config.decoder.width, config.vision.width
        self.vision = VisionTower(config.vision, dtypes, config.loop, rngs)
        self.resampler = Resampler(config.resampler, latent_width, dtypes, config.loop, rngs)
        self.gated = stack(
            lambda rngs: GatedCrossAttention(config.gated, width, latent_width, dtypes, rngs), config.groups, rngs
        )
        self.decoder = Decoder(config.decoder, config.groups, dtypes, rngs)
        self.embeddings = Embeddings(config.decoder, dtypes, rngs)

    def see(self, images_NHW3: jax.Array) -> jax.Array:
        """uint8 (or normalised float) [N, height, width, 3] -> what the tower makes of them, [N, P, C]."""
        return self.vision(constrain(images_NHW3, "images", None, None, None))

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Images [B, N, height, width, 3], or what the tower made of them [B, N, P, C] -> latents [B, N, L, C]."""
        B, N = images.shape[:2]
        if N == 0:
            shape = (B, 0, self.config.resampler.latents, self.config.vision.width)
            return jnp.zeros(shape, self.config.compute_dtype)
        flat = images.reshape(B * N, *images.shape[2:])
        latents = self.resampler(self.see(flat) if flat.ndim == 4 else constrain(flat, "images", None, None))
        return constrain(latents.reshape(B, N, *latents.shape[1:]), "batch", None, None, None)

    def hidden(
        self,
        batch: Batch,
        dropout_key: jax.Array | None = None,
        latents_BNLC: jax.Array | None = None,
        places_BA: jax.Array | None = None,
    ) -> jax.Array:
        """[B, T, D], after the final norm; or [B, A, D], of the tokens at int32 `places_BA` alone.

        With a key, and `decoder.dropout` above 0, with dropout. `latents_BNLC` are the images', where they are at hand.
        """
        config, rate = self.config, self.config.decoder.dropout
        latents_BNLC = self.encode_images(batch.images) if latents_BNLC is None else latents_BNLC
        B, N, L, C = latents_BNLC.shape
        latents_BSC = latents_BNLC.reshape(B, N * L, C)
        sees_images = self.sees_images(batch)
        context = text_context(config.decoder, batch.positions, batch.segment_ids, self.kernel)

        def key_for(number: jax.Array | int) -> jax.Array | None:
            return None if dropout_key is None or rate == 0 else jax.random.fold_in(dropout_key, number)

        def group(
            contexts: list[TextContext], x_BTD: jax.Array, modules: Group, number: jax.Array
        ) -> tuple[jax.Array, None]:
            images = modules[0].shown(latents_BSC)
            keyed = [(context, key_for(number + i)) for i, context in enumerate(contexts)]
            return self.group(x_BTD, modules, images, sees_images, keyed)[0], None

        x_BTD = dropout(self.embed(batch.tokens), rate, key_for(config.decoder.layers))
        first_layers = jnp.arange(config.groups) * config.gated.every
        contexts = [context] * config.gated.every
        last = None
        if places_BA is not None:
            places = answer_context(config.decoder, batch.positions, batch.segment_ids, places_BA)
            last = functools.partial(group, [*contexts[1:], places])
        every = functools.partial(group, contexts)
        x_BTD, _ = scan(every, x_BTD, self.groups, first_layers, loop=config.loop, last=last)
        return self.decoder.norm(x_BTD)

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, D]."""
        return constrain(self.embeddings.embed(tokens_BT), "batch", "sequence", None)

    @property
    def groups(self) -> Group:
        """All groups, stacked."""
        return self.gated, self.decoder.layers

    def group(
        self,
        x_BTD: jax.Array,
        modules: Group,
        images: KeysValues,
        sees_images: jax.Array | Segments,
        contexts: Sequence[tuple[TextContext, jax.Array | None]],
    ) -> tuple[jax.Array, list[KeysValues]]:
        """A gated block and the decoder layers around it, each with its context and its key for dropout.

        Returns:
          The text after it, and what each layer's tokens show to later ones.
        """
        gated, layers = modules
        shown = []
        for i, (layer, (context, key)) in enumerate(zip(unstack(layers, len(contexts)), contexts, strict=True)):
            if i == self.config.gated.block_layer:
                x_BTD = gated(x_BTD, images, sees_images)
            x_BTD, own = layer(x_BTD, context, key)
            shown.append(own)
        return x_BTD, shown

    @property
    def kernel(self) -> Kernel:
        """What computes attention here."""
        return kernel_for(self.config.attention)

    def sees_images(self, batch: Batch) -> jax.Array | Segments:
        """Which latents of its row's images a token looks at: segments, or bool [B, T, N * L]."""
        latents = self.config.resampler.latents
        if self.config.gated.attend != "last_image":
            return jnp.repeat(self.image_mask(batch), latents, axis=-1)
        B, N = batch.images.shape[:2]
        keys_BS = jnp.broadcast_to(jnp.repeat(jnp.arange(1, N + 1), latents), (B, N * latents))
        return segments(batch.image_index + 1, keys_BS, self.kernel)

    def image_mask(self, batch: Batch) -> jax.Array:
        """bool [B, T, N]: which images a token looks at."""
        if self.config.gated.attend == "last_image":
            return last_image_mask(batch.image_index, batch.images.shape[1])
        return earlier_images_mask(batch.image_index, batch.segment_ids, batch.image_segment_ids)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        return self.embeddings.logits(hidden)

    def logits_of(self, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V], of V tokens alone."""
        return self.embeddings.logits_of(hidden, tokens)

    def answer_hidden(
        self, batch: Batch, dropout_key: jax.Array | None = None, latents_BNLC: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states at `batch.answer_positions` alone: [B, A, D]."""
        places_BA = batch.answer_positions
        fewer = places_BA.shape[1] < batch.tokens.shape[1]
        if self.config.last_layer_apart and fewer and splits("sequence") == 1:
            return self.hidden(batch, dropout_key, latents_BNLC, places_BA)
        hidden_BTD = self.hidden(batch, dropout_key, latents_BNLC)
        return jnp.take_along_axis(hidden_BTD, places_BA[..., None], axis=1)

    def __call__(
        self, batch: Batch, dropout_key: jax.Array | None = None, latents_BNLC: jax.Array | None = None
    ) -> jax.Array:
        """Logits at `batch.answer_positions` alone: float32 [B, A, V]."""
        return self.logits(self.answer_hidden(batch, dropout_key, latents_BNLC))
