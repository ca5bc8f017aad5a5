"""The folder of a VQGAN's run that was never trained."""

from pathlib import Path

from experiments.vqgan.images import open_images
from experiments.vqgan.train import open_run, trainer_of
from tests.experiments.test_vqgan import experiment
from unimp_jax.training.checkpoint import Checkpoints


def write_vqgan_run(data: Path, folder: Path) -> Path:
    """Of the geometry of `test_vqgan`; its codewords are as large as latents are."""
    config = experiment(data)
    open_run(config, folder, open_images(config.data, config.vqgan.image_size))
    trainer = trainer_of(config)
    state = trainer.begin(trainer.new_model())
    with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        checkpoints.save(1, state, {})
    return folder
