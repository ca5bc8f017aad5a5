"""Which tower pictures are looked at with when they are compared: the run's own, or one whose weights a user names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.ask import Model
from experiments.data import ExperimentData
from unimp_jax.model.vision import VisionTower
from unimp_jax.sharding import make_mesh

BATCH = 64  # pictures at a time


class PictureTower(Protocol):
    """Attributes:
    name: what a report calls it.
    """

    name: str

    def see(self, images_NHW3: np.ndarray) -> np.ndarray:
        """Features, float32 [N, F], of pictures of any one size, uint8."""
        ...


class OwnTower:
    """The run's vision tower, the mean over patches of what it makes of a picture."""

    def __init__(self, vision: VisionTower, mesh: Mesh):
        config = vision.config
        self.name = f"the run's own tower (the mean over patches, {config.width} features)"
        graph, self._state = nnx.split(vision)

        @jax.jit(out_shardings=NamedSharding(mesh, PartitionSpec()))
        def encode(state: nnx.State, images_NHW3: jax.Array) -> jax.Array:
            images_NHW3 = resized(images_NHW3, config.image_size)
            return nnx.merge(graph, state)(images_NHW3).astype(jnp.float32).mean(axis=1)

        self._encode = encode

    def see(self, images_NHW3: np.ndarray) -> np.ndarray:
        return in_batches(lambda images: self._encode(self._state, images), images_NHW3)


def own_tower(data: ExperimentData, model: Model) -> OwnTower:
    return OwnTower(nnx.merge(model.examiner.graph, *model.parameters).vision, make_mesh(data.config.mesh))


def resized(images_NHW3: jax.Array, size: int) -> jax.Array:
    """uint8 [N, size, size, 3], bicubic, from uint8 of another size."""
    if images_NHW3.shape[1:3] == (size, size):
        return images_NHW3
    shape = (len(images_NHW3), size, size, 3)
    images = jax.image.resize(images_NHW3.astype(jnp.float32), shape, "bicubic", antialias=True)
    return jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)


def in_batches(encode: Callable[[np.ndarray], jax.Array], rows: np.ndarray) -> np.ndarray:
    """float32 [N, F] of N pictures or texts, so many at a time that one compilation does for all."""
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    size = min(BATCH, len(rows))
    found = [np.asarray(encode(np.resize(part, (size, *rows.shape[1:]))))[: len(part)] for part in parts]
    return np.concatenate(found)
