"""Opens the perceptual model of a training, which measures the distance of two images in its features."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from experiments.run import open_model
from experiments.vqgan.config import PerceptualConfig
from unimp_jax.image_tokens.perceptual import tower_distance
from unimp_jax.image_tokens.training import Distance
from unimp_jax.interop.feature_extractors import read_clip
from unimp_jax.interop.lpips import read_lpips
from unimp_jax.model.vision import VisionTower


def perceptual_model(config: PerceptualConfig) -> tuple[Distance | None, Any]:
    """Returns (the distance function, the model's parameters), or (None, {}) if no model is named."""
    if config.lpips:
        graph, parameters = nnx.split(read_lpips(config.lpips))

        def lpips(parameters: Any, images: jax.Array, others: jax.Array) -> jax.Array:
            return nnx.merge(graph, parameters).distance(images, others)

        return lpips, parameters
    if config.tower is not None:
        tower_graph, parameters = nnx.split(open_tower(config.tower))

        def of_tower(parameters: Any, images: jax.Array, others: jax.Array) -> jax.Array:
            return tower_distance(nnx.merge(tower_graph, parameters), images, others)

        return of_tower, parameters
    return None, {}


def open_tower(folder: Path) -> VisionTower:
    """Returns the vision tower of a run, or of a CLIP in Hugging Face's format."""
    if not (folder / "vocabulary").is_dir():
        return read_clip(folder).vision
    _, predictor, _ = open_model(folder, "best")
    return predictor.model().vision
