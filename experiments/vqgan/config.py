"""The training of one VQGAN as one object, and the folder it is kept in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.images import Fit
from unimp_jax.image_tokens.discriminator import DiscriminatorConfig
from unimp_jax.image_tokens.quantiser import QuantiserConfig
from unimp_jax.image_tokens.training import LossConfig
from unimp_jax.image_tokens.vqgan import VQGANConfig
from unimp_jax.training.checkpoint import CheckpointConfig
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

FILE = "vqgan.json"
"""In the folder of a run: its configuration."""


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Which images, and how they become squares."""

    source: str = "movielens_small"
    """A source that `unimp prepare` has prepared, by its own name or the one it was given."""
    folder: Path = Path("data")
    """Where `unimp prepare` has put it."""
    fit: Fit = "stretch"
    """Cut the middle out, squeeze the whole image, or leave black beside it."""
    held_out: float = 0.1
    """The part of the images that nothing is learnt from."""
    held_out_seed: int = 0
    """By which it is chosen."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"data: held_out {self.held_out} is a part of the images, above 0 and below 1")


@dataclasses.dataclass(frozen=True)
class WhichImages:
    """Which images a VQGAN is used on; what is not said is as in its training."""

    source: str | None = None
    """A source that `unimp prepare` has prepared. It must be named where the VQGAN was not trained here."""
    folder: Path | None = None
    """Where `unimp prepare` has put it."""
    fit: Fit | None = None
    """How images become squares."""

    def beside(self, trained: ImageData | None) -> ImageData:
        """
        Raises:
          DataError: neither says of which source.
        """
        if trained is None and self.source is None:
            raise DataError("the VQGAN is no run, which would say whose images: name a source with --data.source")
        said = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(trained or ImageData(), **said)


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """Whose features tell how alike images look. Neither: only pixels do."""

    tower: Path | None = None
    """The vision tower of a run's folder, or of a folder with CLIP in Hugging Face's form."""
    lpips: tuple[Path, ...] = ()
    """LPIPS on VGG-16, in one file or several: the package's, torchvision's VGG beside its linear layers, or a
    taming-transformers checkpoint, which holds both."""

    def __post_init__(self) -> None:
        if self.tower and self.lpips:
            raise ValueError("perceptual: a tower or LPIPS, not both")


@dataclasses.dataclass(frozen=True)
class VQGANExperiment:
    """Everything that the training of a VQGAN depends on."""

    vqgan: VQGANConfig = VQGANConfig()
    data: ImageData = ImageData()
    loss: LossConfig = LossConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    quantiser: QuantiserConfig = QuantiserConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0, decay="matrices", b1=0.5, b2=0.9)
    """Adam, of autoencoder and discriminator alike."""
    guard: GuardConfig = GuardConfig()
    loop: LoopConfig = LoopConfig(steps=100_000, log_every=50, validate_every=5000, save_every=1000)
    checkpoint: CheckpointConfig = CheckpointConfig(best_metric="PSNR")
    batch_size: int = 8
    """Images of a step, all devices together."""
    init_from: Path | None = None
    """A VQGAN whose parameters and geometry training begins with: a run, a VQModel folder, or a checkpoint of
    taming-transformers."""
    seed: int = 0
    """Of the parameters, the order of images and what codewords are revived with."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(f"batch_size {self.batch_size} must be at least 1, seed {self.seed} at least 0")
        if self.quantiser.after >= self.loop.steps:
            raise ValueError(f"quantiser: after {self.quantiser.after} must be below loop.steps {self.loop.steps}")
        if self.optimizer.weight_decay:
            raise ValueError("optimizer: weight_decay must be 0, for codewords do not decay")
