"""The configuration of a VQGAN's training, and of the images it uses."""

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
"""File in the run folder with its configuration."""


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Which images are used, and how they are made square."""

    source: str = "movielens_small"
    """Name of a source prepared by `unimp prepare`: its own name or the one given to it there."""
    folder: Path = Path("data")
    """Folder of the prepared sources."""
    fit: Fit = "stretch"
    """Crop the middle, stretch the whole image, or pad it with black."""
    held_out: float = 0.1
    """Share of the images that are not trained on."""
    held_out_seed: int = 0
    """Seed for choosing the held-out images."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"data: held_out {self.held_out} must be a share of the images above 0 and below 1")


@dataclasses.dataclass(frozen=True)
class WhichImages:
    """The images that a VQGAN is used on; unset fields are as in its training."""

    source: str | None = None
    """Name of a source prepared by `unimp prepare`; required if the VQGAN was not trained here."""
    folder: Path | None = None
    """Folder of the prepared sources."""
    fit: Fit | None = None
    """How images are made square."""

    def beside(self, trained: ImageData | None) -> ImageData:
        """Returns the image data, with unset fields as in the training; DataError if neither names a source."""
        if trained is None and self.source is None:
            raise DataError("a VQGAN that is not a run has no image source; give one with --data.source")
        given = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(trained or ImageData(), **given)


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """The model whose features measure how similar images look; by default, only pixels are compared."""

    tower: Path | None = None
    """The vision tower of a run folder, or of a folder with CLIP in Hugging Face's format."""
    lpips: tuple[Path, ...] = ()
    """LPIPS on VGG-16, in one file or several: the package's, torchvision's VGG beside its linear layers, or a
    taming-transformers checkpoint, which holds both."""

    def __post_init__(self) -> None:
        if self.tower and self.lpips:
            raise ValueError("perceptual: give a tower or LPIPS, not both")


@dataclasses.dataclass(frozen=True)
class VQGANExperiment:
    """Everything that determines the training of a VQGAN."""

    vqgan: VQGANConfig = VQGANConfig()
    data: ImageData = ImageData()
    loss: LossConfig = LossConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    quantiser: QuantiserConfig = QuantiserConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0, decay="matrices", b1=0.5, b2=0.9)
    """Adam, for both autoencoder and discriminator."""
    guard: GuardConfig = GuardConfig()
    loop: LoopConfig = LoopConfig(steps=100_000, log_every=50, validate_every=5000, save_every=1000)
    checkpoint: CheckpointConfig = CheckpointConfig(best_metric="PSNR")
    batch_size: int = 8
    """Images per step, over all devices."""
    init_from: Path | None = None
    """A VQGAN from whose parameters and geometry training starts: a run, a VQModel folder, or a checkpoint
    of taming-transformers."""
    seed: int = 0
    """Seed of the parameters, the order of images and the reviving of codewords."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise ValueError(
                f"batch_size {self.batch_size} must be at least 1, seed {self.seed} at least 0 and below 2^32"
            )
        if self.quantiser.after >= self.loop.steps:
            raise ValueError(f"quantiser: after {self.quantiser.after} must be below loop.steps {self.loop.steps}")
        if self.optimizer.weight_decay:
            raise ValueError("optimizer: weight_decay must be 0, because codewords must not decay")
