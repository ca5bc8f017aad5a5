"""Which tower images are looked at with when they are compared: the run's own, or one whose weights a user names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.plain_text import read_tokenizer, shortened
from unimp_jax.evaluation.mapping import in_batches
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.interop.feature_extractors import read_clip, read_inception
from unimp_jax.interop.layout import WeightsError
from unimp_jax.model.axes import constrain
from unimp_jax.model.vision import VisionTower
from unimp_jax.sharding import put_everywhere


@dataclasses.dataclass(frozen=True)
class FeatureExtractorConfig:
    """By which features images are compared; as it stands, by those of the run's own vision tower."""

    inception: Path | None = None
    """Weights of Inception v3 as the FID has it (`pt_inception-2015-12-05-6726825d.pth`, or the same as safetensors):
    features are its 2,048 pooled ones."""
    clip: Path | None = None
    """A folder with a CLIP model: features are its embeddings, unless `inception` is named, and how well images fit
    the query (CLIP score) is measured as well."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """What makes features of images.

    Attributes:
      name: what a report calls it.
      see: images of any one size, uint8 [N, H, W, 3] -> features, float32 [N, F].
      read: texts -> features, float32 [N, F], of length 1 as those of images then are; None where it sees only.
    """

    name: str
    see: Callable[[np.ndarray], np.ndarray]
    read: Callable[[Sequence[str]], np.ndarray] | None = None


def mean_of_patches(vision: VisionTower, mesh: Mesh) -> FeatureExtractor:
    """A run's vision tower, the mean over patches of what it makes of an image; the devices share the images."""
    config = vision.config
    graph, state = nnx.split(vision)

    @jax.jit(out_shardings=NamedSharding(mesh, PartitionSpec()))
    def encode(state: nnx.State, images_NHW3: jax.Array) -> jax.Array:
        images_NHW3 = constrain(resized(images_NHW3, config.image_size), "images", None, None, None)
        return nnx.merge(graph, state)(images_NHW3).astype(jnp.float32).mean(axis=1)

    def see(images_NHW3: np.ndarray) -> np.ndarray:
        with jax.set_mesh(mesh):
            return in_batches(lambda images: encode(state, put_everywhere(mesh, images)), images_NHW3)

    return FeatureExtractor(f"the run's own tower (the mean over patches, {config.width} features)", see)


def inception_tower(path: Path) -> FeatureExtractor:
    """Inception v3 as the FID has it.

    Raises:
      WeightsError: the file holds no such weights.
    """
    inception = read_inception(path)
    encode = jax.jit(lambda images_NHW3: inception(images_NHW3))
    return FeatureExtractor("Inception v3 as in FID (2,048 features)", functools.partial(in_batches, encode))


def clip_tower(folder: Path) -> FeatureExtractor:
    """A CLIP, which reads texts where it has a tower for them; each is cut to as many tokens as that reads.

    Raises:
      WeightsError: the folder holds no CLIP, or one that reads without its tokenizer.
      DataError: the tokenizer cannot be read.
    """
    clip = read_clip(folder)
    config, text = clip.config, clip.config.text
    name = f"CLIP, {folder} ({config.width or config.vision.width} features)"
    encode = jax.jit(lambda images_NHW3: clip.see(resized(images_NHW3, config.vision.image_size)))
    see = functools.partial(in_batches, encode)
    if text is None:
        return FeatureExtractor(name, see)
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):  # or transformers makes one up
        raise WeightsError(f"{folder}: this CLIP reads, and has no tokenizer beside it (tokenizer.json or vocab.json)")
    tokenizer, encode_texts = read_tokenizer(str(folder)), jax.jit(clip.read)

    def read(texts: Sequence[str]) -> np.ndarray:
        rows = tokenizer(
            [shortened(text) for text in texts], truncation=True, max_length=text.length,
            split_special_tokens=True,  # whatever a category says is plain text
        )["input_ids"]  # fmt: skip
        tokens_NT = np.zeros((len(rows), text.length), np.int32)
        for number, row in enumerate(rows):
            tokens_NT[number, : len(row)] = row
        ends_N1 = np.array([[len(row) - 1] for row in rows], np.int32)
        both = np.concatenate([tokens_NT, ends_N1], axis=1)
        return in_batches(lambda rows: encode_texts(rows[:, :-1], rows[:, -1]), both)

    return FeatureExtractor(name, see, read)


def open_towers(
    config: FeatureExtractorConfig, predictor: Predictor
) -> tuple[FeatureExtractor, FeatureExtractor | None]:
    """(what features are taken from, what tells how well images fit a text).

    Raises:
      WeightsError: what is named cannot be read whole.
    """
    clip = clip_tower(config.clip) if config.clip else None
    if config.inception:
        return inception_tower(config.inception), clip
    return clip or own_tower(predictor), clip


def own_tower(predictor: Predictor) -> FeatureExtractor:
    return mean_of_patches(predictor.model().vision, predictor.mesh)


def resized(images_NHW3: jax.Array, size: int) -> jax.Array:
    """uint8 [N, size, size, 3], bicubic, from uint8 of another size."""
    if images_NHW3.shape[1:3] == (size, size):
        return images_NHW3
    shape = (len(images_NHW3), size, size, 3)
    images = jax.image.resize(images_NHW3.astype(jnp.float32), shape, "bicubic", antialias=True)
    return jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)
