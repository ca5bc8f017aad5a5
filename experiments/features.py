"""Caches the frozen vision tower's output for the catalogue: computed once per run, and read instead of images."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.features import FeatureStore, check_disk_space, write_features
from data_pipelines.images import take
from data_pipelines.local_copy import local_copy
from data_pipelines.object_store import is_there
from experiments.data import ExperimentData
from experiments.parameters import Parameters
from unimp_jax.evaluation.mapping import batch_size, map_batches
from unimp_jax.model.axes import mesh_axes
from unimp_jax.processes import of_first, wait_for_all


def tower_features(data: ExperimentData, parameters: Parameters, mesh: Mesh, folder: Path) -> FeatureStore:
    """Returns the features in the folder, which all processes share, after computing them if they do not exist;
    DataError if they are damaged or the disk has no room."""
    if not of_first(is_there(folder)):
        vision = data.config.model.vision
        shape, dtype = (vision.tokens_out, vision.width), data.config.model.compute_dtype
        items = np.flatnonzero(data.writer.has_image)
        check_disk_space(folder, len(items), shape, dtype)  # on all processes, so that none waits for one that gave up

        def make(items: np.ndarray) -> Iterator[np.ndarray]:
            return encoded(data, parameters, mesh, items)

        if jax.process_index() == 0:
            write_features(folder, items, shape, dtype, make)
        else:
            for _ in make(items):  # this process's devices take part
                pass
        wait_for_all("features are written")
    return FeatureStore(local_copy(folder))


def encoded(data: ExperimentData, parameters: Parameters, mesh: Mesh, items: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the tower's output for batches of items, [some items, P, C] each, on every process."""
    axes = mesh_axes("images")
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axes))

    @jax.jit(out_shardings=everywhere)
    def encode(trainable: nnx.State, frozen: nnx.State, images_NHW3: jax.Array) -> jax.Array:
        return nnx.merge(parameters.graph, trainable, frozen).see(images_NHW3)

    size = batch_size(math.prod(mesh.shape[axis] for axis in axes))

    def see(some: np.ndarray) -> jax.Array:
        @functools.cache
        def show(start: int, stop: int) -> np.ndarray:  # each process loads only the images of its own devices
            return take(data.images, some[start:stop])

        shape = (size, *data.images.shape)
        images = jax.make_array_from_callback(shape, split, lambda index: show(*index[0].indices(size)[:2]))
        return encode(parameters.trainable, parameters.frozen, images)

    return (seen for _, seen in map_batches(see, items, size))
