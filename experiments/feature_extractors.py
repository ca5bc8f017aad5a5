"""Vision towers used to compare images: the run's own tower, or one whose weights the user names."""

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
    """The features by which images are compared; by default, those of the run's own vision tower."""

    inception: Path | None = None
    """Weights of Inception v3 as used for the FID (`pt_inception-2015-12-05-6726825d.pth`, or the same as safetensors);
    its 2,048 pooled features are used."""
    clip: Path | None = None
    """A folder with a CLIP model: its embeddings are the features, unless `inception` is given, and the CLIP score of
    images and queries is measured as well."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A model that computes features of images.

    Attributes:
      see: images of any one size, uint8 [N, H, W, 3] -> features, float32 [N, F].
      read: texts -> features, float32 [N, F], of unit length, as those of images then are too; None without a text
        tower.
    """

    name: str
    see: Callable[[np.ndarray], np.ndarray]
    read: Callable[[Sequence[str]], np.ndarray] | None = None


def mean_of_patches(vision: VisionTower, mesh: Mesh) -> FeatureExtractor:
    """Extracts the mean over patches of the output of a run's vision tower; the devices share the images."""
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
    """Loads Inception v3 as used for the FID; WeightsError if the file does not hold these weights."""
    inception = read_inception(path)
    encode = jax.jit(lambda images_NHW3: inception(images_NHW3))
    return FeatureExtractor("Inception v3 as in FID (2,048 features)", functools.partial(in_batches, encode))


def clip_tower(folder: Path) -> FeatureExtractor:
    """Loads a CLIP model, with its text tower if it has one; texts are cut to its length. Raises WeightsError if the
    folder holds no CLIP, or a text tower without a tokenizer."""
    clip = read_clip(folder)
    config, text = clip.config, clip.config.text
    name = f"CLIP, {folder} ({config.width or config.vision.width} features)"
    encode = jax.jit(lambda images_NHW3: clip.see(resized(images_NHW3, config.vision.image_size)))
    see = functools.partial(in_batches, encode)
    if text is None:
        return FeatureExtractor(name, see)
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):  # else transformers invents one
        raise WeightsError(f"{folder}: this CLIP has a text tower, but no tokenizer (tokenizer.json or vocab.json)")
    tokenizer, encode_texts = read_tokenizer(str(folder)), jax.jit(clip.read)

    def read(texts: Sequence[str]) -> np.ndarray:
        rows = tokenizer(
            [shortened(text) for text in texts], truncation=True, max_length=text.length,
            split_special_tokens=True,  # categories are plain text, whatever they contain
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
    """Returns (the extractor of image features, the one that scores how well images fit a text or None); WeightsError
    if the named weights cannot be read."""
    clip = clip_tower(config.clip) if config.clip else None
    if config.inception:
        return inception_tower(config.inception), clip
    return clip or own_tower(predictor), clip


def own_tower(predictor: Predictor) -> FeatureExtractor:
    """Returns the extractor of a run's own vision tower."""
    return mean_of_patches(predictor.model().vision, predictor.mesh)


def resized(images_NHW3: jax.Array, size: int) -> jax.Array:
    """Resizes images bicubically: uint8 of another size -> uint8 [N, size, size, 3]."""
    if images_NHW3.shape[1:3] == (size, size):
        return images_NHW3
    shape = (len(images_NHW3), size, size, 3)
    images = jax.image.resize(images_NHW3.astype(jnp.float32), shape, "bicubic", antialias=True)
    return jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)
