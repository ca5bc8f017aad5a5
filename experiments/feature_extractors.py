"""Which tower images are looked at with when they are compared: the run's own, or one whose weights a user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.plain_text import shortened
from unimp_jax.evaluation.mapping import in_batches
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.interop.feature_extractors import read_clip, read_inception
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.weights import reason
from unimp_jax.model.axes import constrain
from unimp_jax.model.vision import VisionTower
from unimp_jax.sharding import put_everywhere

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class FeatureExtractorConfig:
    """By which features images are compared; as it stands, by those of the run's own vision tower."""

    inception: Path | None = None
    """Weights of Inception v3 as the FID has it (`pt_inception-2015-12-05-6726825d.pth`, or the same as safetensors):
    features are its 2,048 pooled ones."""
    clip: Path | None = None
    """A folder with a CLIP model: features are its embeddings, unless `inception` is named, and how well images fit
    the query (CLIP score) is measured as well."""


class FeatureExtractor(Protocol):
    """Attributes:
    name: what a report calls it.
    """

    name: str

    def see(self, images_NHW3: np.ndarray) -> np.ndarray:
        """Features, float32 [N, F], of images of any one size, uint8."""
        ...


class OwnTower:
    """The run's vision tower, the mean over patches of what it makes of an image."""

    def __init__(self, vision: VisionTower, mesh: Mesh):
        config = vision.config
        self.name = f"the run's own tower (the mean over patches, {config.width} features)"
        graph, self._state = nnx.split(vision)
        self._mesh = mesh

        @jax.jit(out_shardings=NamedSharding(mesh, PartitionSpec()))
        def encode(state: nnx.State, images_NHW3: jax.Array) -> jax.Array:
            images_NHW3 = constrain(resized(images_NHW3, config.image_size), "images", None, None, None)
            return nnx.merge(graph, state)(images_NHW3).astype(jnp.float32).mean(axis=1)

        self._encode = encode

    def see(self, images_NHW3: np.ndarray) -> np.ndarray:
        with jax.set_mesh(self._mesh):  # whose devices share the images
            return in_batches(lambda images: self._encode(self._state, put_everywhere(self._mesh, images)), images_NHW3)


class InceptionTower:
    """Inception v3 as the FID has it."""

    name = "Inception v3 as in FID (2,048 features)"

    def __init__(self, path: Path):
        """
        Raises:
          WeightsError: the file holds no such weights.
        """
        inception = read_inception(path)
        self._encode = jax.jit(lambda images_NHW3: inception(images_NHW3))

    def see(self, images_NHW3: np.ndarray) -> np.ndarray:
        return in_batches(self._encode, images_NHW3)


class ClipTower:
    """A CLIP: embeddings of images and, where it reads, of texts, of length 1."""

    def __init__(self, folder: Path):
        """
        Raises:
          WeightsError: the folder holds no CLIP, or one that reads without its tokenizer.
        """
        clip = read_clip(folder)
        config = clip.config
        self.name = f"CLIP, {folder} ({config.width or config.vision.width} features)"
        self._see = jax.jit(lambda images_NHW3: clip.see(resized(images_NHW3, config.vision.image_size)))
        self._read = jax.jit(clip.read)
        self._text, self._tokenizer = config.text, open_tokenizer(folder) if config.text else None

    @property
    def reads(self) -> bool:
        return self._tokenizer is not None

    def see(self, images_NHW3: np.ndarray) -> np.ndarray:
        return in_batches(self._see, images_NHW3)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, F]; a text is cut to as many tokens as the tower reads.

        Raises:
          ValueError: this CLIP does not read.
        """
        if self._text is None or self._tokenizer is None:
            raise ValueError("this CLIP has no text tower")
        rows = self._tokenizer(
            [shortened(text) for text in texts], truncation=True, max_length=self._text.length,
            split_special_tokens=True,  # whatever a category says is plain text
        )["input_ids"]  # fmt: skip
        tokens_NT = np.zeros((len(rows), self._text.length), np.int32)
        for number, row in enumerate(rows):
            tokens_NT[number, : len(row)] = row
        ends_N1 = np.array([[len(row) - 1] for row in rows], np.int32)
        both = np.concatenate([tokens_NT, ends_N1], axis=1)
        return in_batches(lambda rows: self._read(rows[:, :-1], rows[:, -1]), both)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """
    Raises:
      WeightsError: there is none in the folder.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):  # or transformers makes one up
        raise WeightsError(f"{folder}: this CLIP reads, and has no tokenizer beside it (tokenizer.json or vocab.json)")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of many kinds, by tokenizer
        raise WeightsError(f"{folder}: the tokenizer of this CLIP cannot be read ({reason(error)})") from error


def open_towers(config: FeatureExtractorConfig, predictor: Predictor) -> tuple[FeatureExtractor, ClipTower | None]:
    """(what features are taken from, what tells how well images fit a text).

    Raises:
      WeightsError: what is named cannot be read whole.
    """
    clip = ClipTower(config.clip) if config.clip else None
    if config.inception:
        return InceptionTower(config.inception), clip
    return clip or own_tower(predictor), clip


def own_tower(predictor: Predictor) -> OwnTower:
    return OwnTower(predictor.model().vision, predictor.mesh)


def resized(images_NHW3: jax.Array, size: int) -> jax.Array:
    """uint8 [N, size, size, 3], bicubic, from uint8 of another size."""
    if images_NHW3.shape[1:3] == (size, size):
        return images_NHW3
    shape = (len(images_NHW3), size, size, 3)
    images = jax.image.resize(images_NHW3.astype(jnp.float32), shape, "bicubic", antialias=True)
    return jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)
