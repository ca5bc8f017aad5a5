"""Floating-point operations that a training step requires, computed from the model configuration alone.

Only matrix products count, with two operations per multiply-add. Attention is counted in full, not halved for
causality, and recomputation in the backward pass is not counted. The forward pass costs 1; the gradient with respect to
a product's activations costs 1 if anything below it trains, and with respect to its weights 1 if they train (in
attention, both operands are activations).
"""

import dataclasses
from collections.abc import Set
from typing import Self

from unimp_jax.model.unimp import ModelConfig


@dataclasses.dataclass(frozen=True)
class Forward:
    """Operations of one part's forward pass: products with weights, and products of activations with each other."""

    weights: float
    attention: float = 0.0

    def __mul__(self, count: float) -> "Forward":
        return Forward(self.weights * count, self.attention * count)

    def step(self, *, trains: bool, below: bool) -> float:
        """Returns operations of forward and backward pass; `below` says whether gradients flow to the layers below."""
        return self.weights * (1 + below + trains) + self.attention * (1 + 2 * (below or trains))


def vision_image(config: ModelConfig) -> Forward:
    """Returns the operations of all tower layers for one image, without the patch embedding."""
    vision = config.vision
    tokens = vision.patches + vision.class_token
    weights = 2 * tokens * vision.width * (4 * vision.width + 2 * vision.mlp_width)
    return Forward(weights, 4 * tokens**2 * vision.width) * vision.layers


def patch_embedding_image(config: ModelConfig) -> Forward:
    vision = config.vision
    return Forward(2 * vision.patches * 3 * vision.patch_size**2 * vision.width)


def resampler_image(config: ModelConfig) -> tuple[Forward, Forward]:
    """Returns the operations of all layers for one image: (on latents, on the patch tokens themselves)."""
    resampler, width, patches = config.resampler, config.vision.width, config.vision.tokens_out
    inner, latents = resampler.heads * resampler.head_dim, resampler.latents
    own = 2 * latents * width * (4 * inner + (3 if resampler.mlp == "swiglu" else 2) * resampler.mlp_ratio * width)
    if resampler.attends_directly(width):
        into_and_out = 2 * latents * width * 2 * inner
        direct = Forward(4 * patches * latents * resampler.heads * width)
        return Forward(own + into_and_out, 4 * latents**2 * inner) * resampler.layers, direct * resampler.layers
    attention = 4 * latents * (patches + latents) * inner
    return Forward(own, attention) * resampler.layers, Forward(2 * patches * width * 2 * inner) * resampler.layers


def projector_image(config: ModelConfig) -> tuple[Forward, Forward]:
    """Returns the operations for one image: (on the projector's own activations, on the tower's output)."""
    tokens, width = config.latents_shape
    scale = config.projector.scale if config.projector.kind == "pixel_shuffle" else 1
    first = Forward(2 * tokens * config.vision.width * scale**2 * width)
    if config.projector.kind == "resampler":
        latents, patches = resampler_image(config)
        return Forward(latents.weights + first.weights, latents.attention), patches
    return Forward(2 * tokens * width**2 if config.projector.kind == "mlp" else 0.0), first


def connector_image(config: ModelConfig) -> tuple[Forward, Forward]:
    """Returns the operations between tower and decoder for one image, split as in `projector_image`."""
    return projector_image(config) if config.interleaved else resampler_image(config)


def gated_row(config: ModelConfig, tokens: int, images: int) -> tuple[Forward, Forward]:
    """Returns the operations of one gated block for one row: (on text, for keys and values of the latents)."""
    if config.interleaved:
        return Forward(0.0), Forward(0.0)
    gated, width = config.gated, config.decoder.width
    inner, latents = gated.heads * gated.head_dim, images * config.resampler.latents
    matrices = 3 if gated.mlp == "swiglu" else 2
    text = 2 * tokens * width * (matrices * gated.hidden_width(width) + (2 * inner if images else 0))
    return Forward(text, 4 * tokens * latents * inner), Forward(2 * latents * config.vision.width * 2 * inner)


def decoder_row(config: ModelConfig, tokens: int, answers: int) -> Forward:
    """Returns the operations of one decoder layer for one row, in which all but keys and values is computed at
    `answers` tokens only."""
    decoder = config.decoder
    inner = decoder.heads * decoder.head_dim
    keys_values = 4 * tokens * decoder.width * decoder.num_kv_heads * decoder.head_dim
    mlp = (3 if decoder.mlp == "swiglu" else 2) * decoder.mlp_width
    return Forward(keys_values + 2 * answers * decoder.width * (2 * inner + mlp), 4 * answers * tokens * inner)


def head_row(config: ModelConfig, answers: int) -> Forward:
    """Returns the operations of the output head for one row."""
    decoder = config.decoder
    return Forward(2 * answers * decoder.width * (decoder.vocab_size + decoder.new_tokens))


def training_step_flops(
    config: ModelConfig, shape: tuple[int, int, int, int], trains: Set[str], *, tower: bool = True
) -> float:
    """Returns the operations of one step over a global batch, summed over all devices.

    Args:
      shape: (B, T, N, A), see `unimp_jax.batch`.
      trains: The parts that are trained; the others are frozen.
      tower: False if batches contain the tower's outputs instead of images.
    """
    rows, tokens, images, answers = shape
    passes = Passes.of(trains, images, config)
    vision_trains, connector_trains = "vision" in trains, connector(config) in trains

    latents, patches = connector_image(config)
    image = latents.step(trains=connector_trains, below=passes.media)
    image += patches.step(trains=connector_trains, below=vision_trains)
    if tower:
        image += patch_embedding_image(config).step(trains=vision_trains, below=False)
        image += vision_image(config).step(trains=vision_trains, below=vision_trains)
    text, media = gated_row(config, tokens, images)
    gated = text.step(trains="gated" in trains, below=passes.blocks) + media.step(
        trains="gated" in trains, below=passes.media
    )
    layer, decoder_trains = decoder_row(config, tokens, tokens), "decoder" in trains
    before_first_block = 0 if config.interleaved else config.gated.block_layer
    decoder = before_first_block * layer.step(trains=decoder_trains, below=passes.text)
    last = decoder_row(config, tokens, min(answers, tokens) if config.last_layer_apart else tokens)
    inner = config.decoder.layers - before_first_block - 1
    decoder += inner * layer.step(trains=decoder_trains, below=passes.blocks)
    decoder += last.step(trains=decoder_trains, below=passes.blocks)
    head = head_row(config, answers).step(trains="embeddings" in trains, below=passes.blocks)
    return float(rows * (images * image + config.groups * gated + decoder + head))


def connector(config: ModelConfig) -> str:
    """Returns the name of the part between the tower and the decoder."""
    return "projector" if config.interleaved else "resampler"


@dataclasses.dataclass(frozen=True)
class Passes:
    """Where gradients flow: to images, to text before the first gated block, and to gated blocks and later layers."""

    media: bool
    text: bool
    blocks: bool

    @classmethod
    def of(cls, trains: Set[str], images: int, config: ModelConfig) -> Self:
        media = bool(images) and bool({"vision", connector(config)} & trains)
        text = bool({"embeddings", "decoder", "adapters"} & trains) or (media and config.interleaved)
        return cls(media, text, text or media or "gated" in trains)


def recomputed_flops(config: ModelConfig, shape: tuple[int, int, int, int], trains: Set[str]) -> float:
    """Returns the operations of a step that are recomputed because `config.remat` did not store their results."""
    rows, tokens, images, _ = shape
    passes = Passes.of(trains, images, config)
    latents, patches = connector_image(config)
    text, media = gated_row(config, tokens, images)
    again = [decoder_row(config, tokens, tokens) * config.decoder.layers, text * config.groups, media * config.groups]
    scanned = [one * passes.blocks for one in again]
    scanned += [one * images * passes.media for one in (latents, patches)]
    scanned += [vision_image(config) * images * ("vision" in trains)]
    weights = sum(one.weights for one in scanned) * (config.remat == "full")
    attention = sum(one.attention for one in scanned) * (config.remat in ("full", "dots"))
    return float(rows * (weights + attention))


def text_attention_flops(config: ModelConfig, shape: tuple[int, int, int, int], trains: Set[str]) -> float:
    """Returns the operations of text attention in a step, to text and to images, including recomputation."""
    rows, tokens, images, _ = shape
    passes = Passes.of(trains, images, config)
    forward = decoder_row(config, tokens, tokens).attention * config.decoder.layers
    forward += gated_row(config, tokens, images)[0].attention * config.groups
    return float(rows * forward * (1 + 2 * passes.blocks + passes.blocks * (config.remat in ("full", "dots"))))
