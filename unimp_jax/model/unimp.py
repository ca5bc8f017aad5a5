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
from unimp_jax.model.attention import (
    Kernel,
    KeysValues,
    Mask,
    earlier_images_mask,
    kernel_for,
    last_image_mask,
    segment_mask,
)
from unimp_jax.model.axes import constrain, splits
from unimp_jax.model.decoder import (
    Decoder,
    DecoderConfig,
    DecoderLayer,
    Embeddings,
    EmbeddingTables,
    TextContext,
    text_context,
)
from unimp_jax.model.gated import GatedCrossAttention, GatedCrossAttentionConfig
from unimp_jax.model.layers import DTypes, Loop, Remat, dropout, scan, stack, unstack
from unimp_jax.model.resampler import Resampler, ResamplerConfig
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
    """So many layers or groups of a loop are unrolled at a time, for a larger program: fewer copies of what is kept for
    the backward pass, which on CPUs is a fifth of a step. Where all are, the last layer computes only the hidden states
    that answers are read from."""

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
        """Whether the last layer is in no loop, and so can be computed for answers alone."""
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

    def forward(
        self,
        batch: Batch,
        dropout_key: jax.Array | None = None,
        latents_BNLC: jax.Array | None = None,
        tables: EmbeddingTables | None = None,
        *,
        answers_only: bool = False,
        cached: bool = False,
    ) -> tuple[jax.Array, Any]:
        """All of the model but the output head.

        Args:
          dropout_key: with it, and `decoder.dropout` above 0, there is dropout.
          latents_BNLC: of the images, where they are at hand; `batch.images` itself is not read then.
          tables: of the embeddings, where they are at hand (in training, with free rows dropped).
          answers_only: hidden states are wanted at `batch.answer_positions` alone.
          cached: keys and values are wanted, too.

        Returns:
          (hidden states after the final norm, [B, T, D] or [B, A, D]; keys and values of the text, [G, E, B, K, T, h],
          and of the images, [G, B, S, H, h]; else None).
        """
        config, rate = self.config, self.config.decoder.dropout
        latents_BNLC = self.encode_images(batch.images) if latents_BNLC is None else latents_BNLC
        B, N, L, C = latents_BNLC.shape
        latents_BSC = latents_BNLC.reshape(B, N * L, C)
        latent_mask, answers_BA = self.latent_mask(batch), batch.answer_positions
        contexts = [text_context(config.decoder, batch, self.kernel)] * config.gated.every

        def key_for(number: jax.Array | int) -> jax.Array | None:
            return None if dropout_key is None or rate == 0 else jax.random.fold_in(dropout_key, number)

        def group(contexts: list[TextContext], x_BTD: jax.Array, modules: Group, number: jax.Array) -> Any:
            images = modules[0].keys_values(latents_BSC)
            keyed = [(context, key_for(number + i)) for i, context in enumerate(contexts)]
            x_BTD, text = self.group(x_BTD, modules, images, latent_mask, keyed)
            return x_BTD, (jax.tree.map(lambda x: x.swapaxes(2, 3), text), images) if cached else None

        last = None
        fewer = answers_only and answers_BA.shape[1] < batch.tokens.shape[1]
        if fewer and config.last_layer_apart and splits("sequence") == 1:
            answer_context = text_context(config.decoder, batch, self.kernel, answers_BA)
            last = functools.partial(group, [*contexts[1:], answer_context])
        x_BTD = dropout(self.embed(batch.tokens, tables), rate, key_for(config.decoder.layers))
        first_layers = jnp.arange(config.groups) * config.gated.every
        every = functools.partial(group, contexts)
        x_BTD, cache = scan(every, x_BTD, self.groups, first_layers, loop=config.loop, last=last)
        if answers_only and last is None:
            x_BTD = jnp.take_along_axis(x_BTD, answers_BA[..., None], axis=1)
        return self.decoder.norm(x_BTD), cache

    @property
    def groups(self) -> Group:
        """All groups, stacked."""
        return self.gated, self.decoder.layers

    def group(
        self,
        x_BTD: jax.Array,
        modules: Group,
        images: KeysValues,
        latent_mask: Mask,
        contexts: Sequence[tuple[TextContext, jax.Array | None]],
    ) -> tuple[jax.Array, KeysValues]:
        """A gated block and the decoder layers around it, each with its context and its key for dropout.

        Returns:
          The text after it, and keys and values of each layer, [E, B, T, K, h].
        """
        gated, layers = modules
        text = []
        for i, (layer, (context, key)) in enumerate(zip(unstack(layers, len(contexts)), contexts, strict=True)):
            if i == self.config.gated.block_layer:
                x_BTD = gated(x_BTD, images, latent_mask)
            x_BTD, own = layer(x_BTD, context, key)
            text.append(own)
        return x_BTD, jax.tree.map(lambda *x: jnp.stack(x), *text)

    @property
    def kernel(self) -> Kernel:
        """What computes attention here."""
        return kernel_for(self.config.attention)

    def image_mask(self, batch: Batch) -> jax.Array:
        """bool [B, T, N]: which images of its row a token attends to."""
        if self.config.gated.attend == "last_image":
            return last_image_mask(batch.image_index, batch.images.shape[1])
        return earlier_images_mask(batch.image_index, batch.segment_ids, batch.image_segment_ids)

    def latent_mask(self, batch: Batch) -> Mask:
        """Which latents of its row's images a token attends to, S = N L."""
        latents = self.config.resampler.latents
        if self.config.gated.attend != "last_image":
            return jnp.repeat(self.image_mask(batch), latents, axis=-1)
        B, N = batch.images.shape[:2]
        numbers_BS = jnp.broadcast_to(jnp.repeat(jnp.arange(1, N + 1), latents), (B, N * latents))
        return segment_mask(batch.image_index + 1, numbers_BS, self.kernel)

    def embed(self, tokens_BT: jax.Array, tables: EmbeddingTables | None = None) -> jax.Array:
        """int32 [B, T] -> [B, T, D]."""
        tables = self.embeddings.tables() if tables is None else tables
        return constrain(tables.embed(tokens_BT), "batch", "sequence", None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        return self.embeddings.tables().logits(hidden)

    def logits_of(self, hidden: jax.Array, tokens_V: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V], of the tokens that are named (int32 [V]) alone."""
        return self.embeddings.tables().logits_of(hidden, tokens_V)

    def hidden(self, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        """Hidden states of all tokens: [B, T, D]."""
        return self.forward(batch, dropout_key)[0]

    def answer_hidden(
        self,
        batch: Batch,
        dropout_key: jax.Array | None = None,
        tables: EmbeddingTables | None = None,
    ) -> jax.Array:
        """Hidden states at `batch.answer_positions` alone: [B, A, D]."""
        return self.forward(batch, dropout_key, tables=tables, answers_only=True)[0]

    def __call__(self, batch: Batch) -> jax.Array:
        """Logits at `batch.answer_positions` alone: float32 [B, A, V]."""
        return self.logits(self.answer_hidden(batch))
