"""VQGAN presets: three for a few minutes on one core, and that of the UniMP reference."""

import dataclasses

from experiments.vqgan.config import ImageData, VQGANExperiment
from unimp_jax.image_tokens.quantiser import QuantiserConfig
from unimp_jax.image_tokens.training import LossConfig
from unimp_jax.image_tokens.vqgan import VQGANConfig
from unimp_jax.training.checkpoint import CheckpointConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

SMALL = VQGANConfig(
    image_size=64, channels=(8, 16, 32, 64), blocks=1, attention_levels=(), latent_channels=64, groups=2, codes=512,
    code_width=32,
)  # fmt: skip
"""64 x 64 pixels as 8 x 8 codes, with few channels at high resolutions, which take most of the time. Norms over single
channels would remove the mean of every channel, and with it an image's colour."""

QUICK = OptimizerConfig(
    learning_rate=2e-3, warmup=0.05, final=0.02, weight_decay=0.0, decay="matrices", b1=0.9, b2=0.99
)
PIXELS = LossConfig(absolute=0.0, squared=1.0, perceptual=0.0, adversarial=0.0)
"""The squared error that PSNR measures, without losses that take more than minutes to learn."""

POSTERS = VQGANExperiment(
    vqgan=SMALL,
    data=ImageData("movielens_1m"),
    loss=PIXELS,
    quantiser=QuantiserConfig(after=500, average=0.98, revive_every=50),
    optimizer=QUICK,
    loop=LoopConfig(steps=3000, log_every=25, validate_every=500, save_every=250),
    checkpoint=CheckpointConfig(best_metric="PSNR"),
    batch_size=8,
)

PRODUCTS = dataclasses.replace(POSTERS, data=ImageData("hm-products"))

DEMO = dataclasses.replace(
    POSTERS,
    vqgan=dataclasses.replace(SMALL, image_size=32, channels=(16, 32, 64), codes=256),
    data=ImageData("movielens_small"),
    quantiser=dataclasses.replace(POSTERS.quantiser, after=100),
    loop=LoopConfig(steps=300, log_every=25, validate_every=300, save_every=150),
)

REFERENCE = VQGANExperiment()

PRESETS = {"posters": POSTERS, "products": PRODUCTS, "demo": DEMO, "reference": REFERENCE}

DESCRIPTIONS = {
    "posters": "MovieLens 1M's posters, 64 x 64 pixels as 8 x 8 of 512 codes",
    "products": "H&M's products, 64 x 64 pixels as 8 x 8 of 512 codes",
    "demo": "the embedded posters, 32 x 32 pixels as 8 x 8 of 256 codes: what `unimp demo` trains",
    "reference": "UniMP's: 256 x 256 pixels as 16 x 16 of 1,024 codes, with a discriminator",
}
