"""Semantic ids: a few codes for each item, such that similar items share prefixes and all ids are distinct."""

import dataclasses
from typing import Literal

import numpy as np

from unimp_jax.semantic_ids import residual_kmeans, rq_vae
from unimp_jax.semantic_ids.collisions import residual_distances, resolve
from unimp_jax.semantic_ids.metrics import CodebookMetrics, describe
from unimp_jax.semantic_ids.residual_kmeans import Quantised
from unimp_jax.semantic_ids.rq_vae import RQVAEConfig


@dataclasses.dataclass(frozen=True)
class SemanticIdConfig:
    """Layout of ids, by default that of the UniMP reference, and the method that learns the levels."""

    method: Literal["residual_kmeans", "rq_vae"] = "residual_kmeans"
    levels: int = 3
    """Number of learned levels; one more distinguishes items with equal codes."""
    codes: int = 512
    """Number of codes per learned level."""
    last: int = 32
    """Number of codes of the additional level."""
    iterations: int = 50
    """Maximum number of k-means iterations per level."""
    rq_vae: RQVAEConfig = RQVAEConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("residual_kmeans", "rq_vae"):
            raise ValueError(f'method "{self.method}" is neither "residual_kmeans" nor "rq_vae"')
        if min(self.levels, self.codes, self.iterations) < 1:
            raise ValueError(f"ids: levels, codes and iterations must each be at least 1: {self}")


@dataclasses.dataclass(frozen=True)
class SemanticIds:
    """Ids, the quantisation that they were made from, and codebook metrics."""

    ids: np.ndarray  # int32 [I, levels + 1], all distinct
    quantised: Quantised
    metrics: CodebookMetrics


def semantic_ids(features: np.ndarray, config: SemanticIdConfig) -> SemanticIds:
    """Returns a distinct id for each item.

    Args:
      features: float32 [I, F], on similar scales.

    Raises:
      ValueError: Features do not have two axes, are empty, or are not all finite; there are fewer ids than items; a
        setting is out of range; or a loss is not finite.
    """
    levels, codes, seed = config.levels, config.codes, config.seed
    if config.method == "rq_vae":
        quantised = rq_vae.train_rq_vae(features, config.rq_vae, levels, codes, seed)
    else:
        quantised = residual_kmeans.residual_kmeans(features, levels, codes, iterations=config.iterations, seed=seed)
    distances = residual_distances(quantised.points, quantised.codebooks)
    ids = resolve(quantised.codes, config.last, size=codes, distances=distances)
    return SemanticIds(ids, quantised, describe(quantised.codes, ids, size=codes, errors=quantised.errors))
