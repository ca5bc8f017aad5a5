"""The complete UniMP model: takes images and text, returns logits at the answer positions."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.batch import Batch
from unimp_jax.model.adapters import AdapterConfig, add_adapters
from unimp_jax.model.attention import Kernel, KeysValues, Mask, kernel_for, segment_mask
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
from unimp_jax.model.layers import DTypes, Loop, Remat, dropout, of_keys, scan, stack, unstack
from unimp_jax.model.projector import Projector, ProjectorConfig
from unimp_jax.model.quantization import Quantization, quantize_layers
from unimp_jax.model.resampler import Resampler, ResamplerConfig
from unimp_jax.model.vision import VisionConfig, VisionTower

Part = Literal["vision", "resampler", "gated", "projector", "decoder", "embeddings", "adapters"]
PARTS: tuple[Part, ...] = ("vision", "resampler", "gated", "projector", "decoder", "embeddings", "adapters")
"""The parts of a `UniMP`: its attributes, and the adapters in them; each is trained or frozen as a whole."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture, dtypes and execution options of the complete model."""

    vision: VisionConfig = VisionConfig()
    resampler: ResamplerConfig = ResamplerConfig()
    gated: GatedCrossAttentionConfig = GatedCrossAttentionConfig()
    decoder: DecoderConfig = DecoderConfig()
    fusion: Literal["cross_attention", "interleaved"] = "cross_attention"
    """How text sees images: through gated cross-attention (resampler, gated), or as tokens in its sequence
    (projector)."""
    projector: ProjectorConfig = ProjectorConfig()
    adapters: AdapterConfig = AdapterConfig()
    compute_dtype: str = "bfloat16"
    """Dtype of activations and matrix products; norms, softmax and logits are always float32."""
    param_dtype: str = "float32"
    """Dtype of parameters. In training, trained parameters are float32 and frozen ones have `compute_dtype`."""
    decoder_quantization: Quantization = "none"
    """Storage of the matrices of a frozen decoder: like other parameters, or as int8 or float8 with one scale per
    column, in half the memory of bfloat16."""
    attention: Literal["auto", "xla", "rows", "splash", "cudnn", "triton"] = "auto"
    """Attention kernel for text, used where shapes and dtypes allow it; XLA otherwise. "auto" selects our whole-row
    kernel on TPUs (splash where the tokens of a row are split over devices or do not fill whole tiles), cuDNN on NVIDIA
    GPUs and XLA elsewhere. "triton" is for NVIDIA GPUs too and makes no mask of all pairs of a row's tokens; the memory
    of masks is in docs/scaling.md. Attention among the tokens of an image uses our kernel on TPUs and XLA elsewhere."""
    remat: Remat = "none"
    """What the backward pass stores of each layer or group, and what it recomputes."""
    unroll: int = 1
    """Number of layers or groups that are unrolled per loop iteration. Unrolling makes the program larger but saves
    copies of stored activations, a fifth of a step on CPUs; if all are unrolled, the last layer computes only the
    hidden states at the answer positions."""

    def __post_init__(self) -> None:
        if self.fusion == "interleaved":
            self.projector.tokens(self.vision, self.resampler)
        elif self.decoder.layers % self.gated.every:
            raise ValueError(f"model: gated.every {self.gated.every} must divide decoder.layers {self.decoder.layers}")
        if self.unroll < 1:
            raise ValueError(f"model: unroll {self.unroll} must be 1 or more")
        for name in ("compute_dtype", "param_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"model: {name} {getattr(self, name)!r} must be float32 or bfloat16")

    @property
    def interleaved(self) -> bool:
        """Whether images are tokens in the decoder's sequence."""
        return self.fusion == "interleaved"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that this model has."""
        absent: tuple[str, ...] = ("resampler", "gated") if self.interleaved else ("projector",)
        absent = absent if self.adapters.rank else (*absent, "adapters")
        return tuple(part for part in PARTS if part not in absent)

    @property
    def image_tokens(self) -> int:
        """Number of tokens that represent an image in a prompt; 1, a marker, with cross-attention."""
        return self.projector.tokens(self.vision, self.resampler) if self.interleaved else 1

    @property
    def latents_shape(self) -> tuple[int, int]:
        """Shape of an image's representation that the decoder reads: (L, C), or (L, D) where images are tokens."""
        if self.interleaved:
            return self.image_tokens, self.decoder.width
        return self.resampler.latents, self.vision.width

    @property
    def group_layers(self) -> int:
        """Number of decoder layers in a group."""
        return 1 if self.interleaved else self.gated.every

    @property
    def groups(self) -> int:
        """Number of groups of decoder layers, with a gated block each; without such blocks, number of layers."""
        return self.decoder.layers // self.group_layers

    @property
    def materialised(self) -> Self:
        """The configuration of the same model after content is added to the embedding tables and adapters to the
        matrices, without quantisation."""
        return dataclasses.replace(
            self, decoder=self.decoder.without_content, adapters=AdapterConfig(), decoder_quantization="none"
        )

    @property
    def last_layer_apart(self) -> bool:
        """Whether the last layer is outside any loop, so that it can be computed at the answer positions only."""
        return self.unroll >= self.groups

    @property
    def loop(self) -> Loop:
        """How all stacks of layers are run."""
        return Loop(self.remat, self.unroll)


def part_of(path: Sequence[Any]) -> Part:
    """Returns the part that a parameter belongs to, given its path from `nnx.split` or `jax.tree_util`; raises
    ValueError if the path does not start with a part."""
    names = [getattr(entry, "key", getattr(entry, "name", entry)) for entry in path]
    if "adapter" in names:
        return "adapters"
    name = names[0]
    if name not in PARTS:
        raise ValueError(f"{name!r} is not a part of the model; the parts are {', '.join(PARTS)}")
    return name


Group = tuple[GatedCrossAttention | None, DecoderLayer]
"""A gated block (None where the model has none) and the stacked decoder layers of its group."""


class UniMP(nnx.Module):
    """The complete model, in one of two architectures.

    Either vision tower -> resampler -> decoder with gated cross-attention (OpenFlamingo, arXiv:2308.01390), or vision
    tower -> projector -> decoder with images among the text tokens (LLaVA, arXiv:2304.08485).

    The attributes are the `parts` of the configuration; absent parts are None. `gated` is stacked, one block per group,
    and `embeddings` contains the output head. A call has no side effects and keeps no random state.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtypes = DTypes(config.param_dtype, config.compute_dtype)
        width, latent_width = config.decoder.width, config.vision.width
        self.vision = VisionTower(config.vision, dtypes, config.loop, rngs)

        def block(rngs: nnx.Rngs) -> GatedCrossAttention:
            return GatedCrossAttention(config.gated, width, latent_width, dtypes, rngs)

        def projector() -> Projector:
            return Projector(config.projector, config.vision, config.resampler, width, dtypes, config.loop, rngs)

        tokens = config.interleaved
        self.resampler = None if tokens else Resampler(config.resampler, latent_width, dtypes, config.loop, rngs)
        self.gated = None if tokens else stack(block, config.groups, rngs)
        self.projector = projector() if tokens else None
        self.decoder = Decoder(config.decoder, config.groups, dtypes, rngs)
        self.embeddings = Embeddings(config.decoder, dtypes, rngs)
        quantize_layers(self.decoder, config.decoder_quantization)
        add_adapters(self, config.adapters, dtypes, rngs)

    def see(self, images_NHW3: jax.Array) -> jax.Array:
        """Encodes images with the vision tower: uint8 (or normalised float) [N, height, width, 3] -> [N, P, C]."""
        return self.vision(constrain(images_NHW3, "images", None, None, None))

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Returns latents [B, N, L, C], or token embeddings [B, N, L, D] where images are tokens, of images [B, N,
        height, width, 3] or of the outputs of the vision tower for them, [B, N, P, C]."""
        B, N = images.shape[:2]
        if N == 0:
            return jnp.zeros((B, 0, *self.config.latents_shape), self.config.compute_dtype)
        flat = images.reshape(B * N, *images.shape[2:])
        seen = self.see(flat) if flat.ndim == 4 else constrain(flat, "images", None, None)
        reads = self.projector if self.resampler is None else self.resampler
        assert reads is not None
        latents = reads(seen)
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
        """Computes the hidden states: the whole model except the output head.

        Args:
          dropout_key: One key for all rows or one per row, [B]. Dropout is applied if it is given and `decoder.dropout`
            or `adapters.dropout` is above 0.
          latents_BNLC: Latents of the images, if already computed; `batch.images` itself is not read then.
          tables: Embedding tables, if already computed (in training, with dropout of free rows).
          answers_only: Return hidden states at `batch.answer_positions` only.
          cached: Also return keys and values.

        Returns:
          (hidden states after the final norm, [B, T, D] or [B, A, D]; the cache). The cache is None unless `cached`,
          else the keys and values of the text, [G, E, B, K, T, h], and of the images, [G, B, S, H, h] (None where
          images are tokens).
        """
        config, rate = self.config, self.config.decoder.dropout
        drops = rate > 0 or config.adapters.dropout > 0
        latents_BNLC = self.encode_images(batch.images) if latents_BNLC is None else latents_BNLC
        B, N, L, C = latents_BNLC.shape
        latents_BSC = latents_BNLC.reshape(B, N * L, C)
        latent_mask, answers_BA = self.latent_mask(batch), batch.answer_positions
        contexts = [text_context(config.decoder, batch, self.kernel)] * config.group_layers

        def key_for(number: jax.Array | int) -> jax.Array | None:
            if not drops or dropout_key is None:
                return None
            return of_keys(lambda key: jax.random.fold_in(key, number), dropout_key)

        def group(contexts: list[TextContext], x_BTD: jax.Array, modules: Group, number: jax.Array) -> Any:
            images = None if modules[0] is None else modules[0].keys_values(latents_BSC)
            keyed = [(context, key_for(number + i)) for i, context in enumerate(contexts)]
            x_BTD, text = self.group(x_BTD, modules, images, latent_mask, keyed)
            return x_BTD, (jax.tree.map(lambda x: x.swapaxes(2, 3), text), images) if cached else None

        last = None
        fewer = answers_only and answers_BA.shape[1] < batch.tokens.shape[1]
        if fewer and config.last_layer_apart and splits("sequence") == 1:
            answer_context = text_context(config.decoder, batch, self.kernel, answers_BA)
            last = functools.partial(group, [*contexts[1:], answer_context])
        x_BTD = self.embed(batch.tokens, tables)
        if config.interleaved and N:
            x_BTD = with_images(x_BTD, latents_BSC, image_slots(batch.image_index, L))
        x_BTD = dropout(x_BTD, rate, key_for(config.decoder.layers))
        first_layers = jnp.arange(config.groups) * config.group_layers
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
        images: KeysValues | None,
        latent_mask: Mask | None,
        contexts: Sequence[tuple[TextContext, jax.Array | None]],
    ) -> tuple[jax.Array, KeysValues]:
        """Runs the gated block (if any) and the decoder layers of a group, each with its context and dropout key;
        returns the hidden states after the group, and the keys and values of each layer, [E, B, T, K, h]."""
        gated, layers = modules
        text = []
        for i, (layer, (context, key)) in enumerate(zip(unstack(layers, len(contexts)), contexts, strict=True)):
            if (
                gated is not None
                and images is not None
                and latent_mask is not None
                and i == self.config.gated.block_layer
            ):
                x_BTD = gated(x_BTD, images, latent_mask)
            x_BTD, own = layer(x_BTD, context, key)
            text.append(own)
        return x_BTD, jax.tree.map(lambda *x: jnp.stack(x), *text)

    @property
    def kernel(self) -> Kernel:
        """The attention kernel: the configured one, or for "auto" that of the platform."""
        return kernel_for(self.config.attention)

    def image_mask(self, batch: Batch) -> jax.Array:
        """bool [B, T, N]: which images of its row a token attends to."""
        latest_BT1 = batch.image_index[:, :, None]
        if self.config.gated.attend == "last_image":
            return latest_BT1 == jnp.arange(batch.images.shape[1])
        same_BTN = batch.segment_ids[:, :, None] == batch.image_segment_ids[:, None, :]
        earlier_BTN = jnp.arange(batch.image_segment_ids.shape[1]) <= latest_BT1
        return same_BTN & (batch.segment_ids > 0)[:, :, None] & earlier_BTN

    def latent_mask(self, batch: Batch) -> Mask | None:
        """Mask of the image latents of its row that a token attends to, S = N L; None where images are tokens."""
        if self.config.interleaved:
            return None
        latents = self.config.resampler.latents
        if self.config.gated.attend != "last_image":
            return jnp.repeat(self.image_mask(batch), latents, axis=-1)
        B, N = batch.images.shape[:2]
        numbers_BS = jnp.broadcast_to(jnp.repeat(jnp.arange(1, N + 1), latents), (B, N * latents))
        return segment_mask(batch.image_index + 1, numbers_BS, self.kernel)

    def embed(self, tokens_BT: jax.Array, tables: EmbeddingTables | None = None) -> jax.Array:
        """Embeds tokens: int32 [B, T] -> [B, T, D]."""
        tables = self.embeddings.tables() if tables is None else tables
        return constrain(tables.embed(tokens_BT), "batch", "sequence", None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Applies the output head: [..., D] -> float32 [..., V]."""
        return self.embeddings.tables().logits(hidden)

    def logits_of(self, hidden: jax.Array, tokens_V: jax.Array) -> jax.Array:
        """Returns the logits of the given tokens (int32 [V]) only: [..., D] -> float32 [..., V]."""
        return self.embeddings.tables().logits_of(hidden, tokens_V)

    def hidden(self, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        """Returns the hidden states of all tokens, [B, T, D]."""
        return self.forward(batch, dropout_key)[0]

    def answer_hidden(
        self,
        batch: Batch,
        dropout_key: jax.Array | None = None,
        tables: EmbeddingTables | None = None,
    ) -> jax.Array:
        """Returns the hidden states at `batch.answer_positions` only, [B, A, D]."""
        return self.forward(batch, dropout_key, tables=tables, answers_only=True)[0]

    def __call__(self, batch: Batch) -> jax.Array:
        """Returns the logits at `batch.answer_positions` only, float32 [B, A, V]."""
        return self.logits(self.answer_hidden(batch))


def image_slots(image_index_BT: jax.Array, image_tokens: int) -> jax.Array:
    """Returns, as int32 [B, T], which of the N L image embeddings of its row replaces each token; -1 for text. The
    tokens of an image are the first ones whose `Batch.image_index` is its number. Token ids cannot decide this, because
    an item's text may contain the marker."""
    places_T = jnp.arange(image_index_BT.shape[1])
    begins_BT = jnp.diff(image_index_BT, axis=1, prepend=-1) != 0
    since_BT = places_T - jax.lax.cummax(jnp.where(begins_BT, places_T, 0), axis=1)
    of_image_BT = (image_index_BT >= 0) & (since_BT < image_tokens)
    return jnp.where(of_image_BT, image_index_BT * image_tokens + since_BT, -1)


def with_images(x_BTD: jax.Array, images_BSD: jax.Array, slots_BT: jax.Array) -> jax.Array:
    """Returns the token embeddings of each row with the image embeddings inserted at their positions."""
    images_BTD = jnp.take_along_axis(images_BSD, jnp.maximum(slots_BT, 0)[..., None], axis=1)
    return constrain(jnp.where((slots_BT >= 0)[..., None], images_BTD, x_BTD), "batch", "sequence", None)
