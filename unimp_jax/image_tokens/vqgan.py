"""VQGAN (Esser et al. 2021, arXiv:2012.09841): encodes an image as a grid of codes, and decodes codes to an image.

The computation is that of taming-transformers and of `VQModel` in diffusers, with which weights are exchanged
(`unimp_jax.interop.vqgan`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.image_tokens.layers import GroupNorm, Level, Middle, conv, doubled, halving
from unimp_jax.image_tokens.quantiser import nearest_codes


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """Architecture; the defaults are those of the UniMP reference: 256 x 256 pixels as 16 x 16 of 1,024 codes."""

    image_size: int = 256
    """Height and width in pixels."""
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    """Channels at each resolution; each resolution is half the previous one."""
    blocks: int = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    attention_levels: tuple[int, ...] = (4,)
    """Resolutions, 0 the finest, whose blocks are followed by attention."""
    middle_attention: bool = True
    """Whether there is attention between the two blocks at the lowest resolution."""
    latent_channels: int = 256
    """Channels of the encoder's output and the decoder's input."""
    groups: int = 32
    """Groups of the norms; must divide all channels."""
    codes: int = 1024
    code_width: int = 256
    """Channels of a codeword."""

    def __post_init__(self) -> None:
        sizes = (self.blocks, self.latent_channels, self.groups, self.codes, self.code_width, *self.channels)
        if not self.channels or min(sizes) < 1:
            raise ValueError(f"vqgan: all sizes must be at least 1, and channels must not be empty: {self}")
        wrong = [width for width in self.channels if width % self.groups]
        if wrong:
            raise ValueError(f"vqgan: groups {self.groups} must divide all channels, but does not divide {wrong[0]}")
        if self.image_size % self.downscale:
            raise ValueError(
                f"vqgan: {len(self.channels)} channels downscale an image by a factor of {self.downscale}, which "
                f"must divide image_size {self.image_size}"
            )
        if not set(self.attention_levels) <= set(range(len(self.channels))):
            raise ValueError(
                f"vqgan: attention_levels {self.attention_levels} must be between 0 and {len(self.channels) - 1}, "
                "the indices of channels"
            )

    @property
    def downscale(self) -> int:
        """Height and width in pixels of the area that a code represents."""
        return 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> int:
        """Number of rows of codes, and of columns."""
        return self.image_size // self.downscale

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    @property
    def bits_per_image(self) -> float:
        """Size in bits of the codes of an image at equal code lengths."""
        return self.codes_per_image * float(np.log2(self.codes))


class Encoder(nnx.Module):
    """Maps an image to a grid of latents."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs):
        channels, groups = config.channels, config.groups
        self.conv_in = conv(3, channels[0], rngs)
        inputs = (channels[0], *channels[:-1])
        self.levels = nnx.List([
            Level(before, width, config.blocks, groups, level in config.attention_levels, rngs)
            for level, (before, width) in enumerate(zip(inputs, channels, strict=True))
        ])  # fmt: skip
        self.halvings = nnx.List([halving(width, rngs) for width in channels[:-1]])
        self.middle = Middle(channels[-1], groups, config.middle_attention, rngs)
        self.norm_out = GroupNorm(channels[-1], groups)
        self.conv_out = conv(channels[-1], config.latent_channels, rngs)

    def __call__(self, images_BHW3: jax.Array) -> jax.Array:
        x = self.levels[0](self.conv_in(images_BHW3))
        for halve, level in zip(self.halvings, self.levels[1:], strict=True):
            x = level(halve(x))
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Maps a grid of latents to an image; levels are numbered as in the encoder but run from the last, 0 the finest."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs):
        channels, groups = config.channels, config.groups
        self.conv_in = conv(config.latent_channels, channels[-1], rngs)
        self.middle = Middle(channels[-1], groups, config.middle_attention, rngs)
        inputs = (*channels[1:], channels[-1])
        self.levels = nnx.List([
            Level(before, width, config.blocks + 1, groups, level in config.attention_levels, rngs)
            for level, (before, width) in enumerate(zip(inputs, channels, strict=True))
        ])  # fmt: skip
        self.doublings = nnx.List([conv(width, width, rngs) for width in channels[1:]])
        self.norm_out = GroupNorm(channels[0], groups)
        self.conv_out = conv(channels[0], 3, rngs)

    def features(self, x_BhwL: jax.Array) -> jax.Array:
        """Returns the inputs of `conv_out`, [B, H, W, channels[0]]."""
        x = self.levels[-1](self.middle(self.conv_in(x_BhwL)))
        for number in reversed(range(len(self.doublings))):
            x = self.levels[number](self.doublings[number](doubled(x)))
        return jax.nn.silu(self.norm_out(x))

    def __call__(self, x_BhwL: jax.Array) -> jax.Array:
        return self.conv_out(self.features(x_BhwL))


class VQGAN(nnx.Module):
    """Encoder, codebook and decoder; images are float with channels last, -1 black and 1 white."""

    def __init__(self, config: VQGANConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder, self.decoder = Encoder(config, rngs), Decoder(config, rngs)
        self.to_code = nnx.Linear(config.latent_channels, config.code_width, rngs=rngs)
        self.from_code = nnx.Linear(config.code_width, config.latent_channels, rngs=rngs)
        self.codebook = nnx.Param(
            jax.random.uniform(rngs.params(), (config.codes, config.code_width), minval=-1, maxval=1) / config.codes
        )

    def encode(self, images_BHW3: jax.Array) -> jax.Array:
        """Returns latents before quantisation, float32 [B, h, w, Z]; raises ValueError if images do not have three
        channels, or height and width are not multiples of `config.downscale`."""
        shape, shrinks = images_BHW3.shape, self.config.downscale
        if len(shape) != 4 or shape[3] != 3 or shape[1] % shrinks or shape[2] % shrinks:
            raise ValueError(
                f"images have shape {shape}; expected [images, height, width, 3], with height and width multiples "
                f"of {shrinks}"
            )
        return self.to_code(self.encoder(images_BHW3))

    def codes(self, images_BHW3: jax.Array) -> jax.Array:
        """Returns the nearest code at each position, int32 [B, h, w]."""
        return nearest_codes(self.encode(images_BHW3), self.codebook[...])

    def decode(self, codes_Bhw: jax.Array) -> jax.Array:
        """Decodes codes to images, float32 [B, H, W, 3], about -1 to 1; see `pixels`."""
        return self.decoder.conv_out(self.features(self.codebook[...][codes_Bhw]))

    def features(self, codewords_BhwZ: jax.Array) -> jax.Array:
        """Returns `Decoder.features` of codewords or of latents."""
        return self.decoder.features(self.from_code(codewords_BhwZ))


def pixels(images: jax.Array) -> jax.Array:
    """Converts images from a VQGAN, float about -1 to 1, to uint8."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def from_pixels(images: jax.Array) -> jax.Array:
    """Converts uint8 to float32, -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1
