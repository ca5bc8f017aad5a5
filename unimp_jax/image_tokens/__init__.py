"""Image tokenizer: a VQGAN, its losses, and its training."""

from unimp_jax.image_tokens.vqgan import VQGAN, VQGANConfig, from_pixels, pixels
