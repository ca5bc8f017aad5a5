"""Experiments by name, from minutes on two cores to weeks on a pod."""

from __future__ import annotations

from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.queries import QueryConfig, TaskMix
from data_pipelines.tasks import Budget, TaskConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import ExperimentConfig, TrainingConfig
from unimp_jax.model import presets as models
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

ALL_PARTS = ("vision", "resampler", "gated", "decoder", "embeddings")
FROM_NOTHING = OptimizerConfig(
    learning_rate=2e-3, warmup=0.05, final=0.05, weight_decay=0.05, decay="matrices", b2=0.98
)

TINY = ExperimentConfig(
    model=models.tiny,
    vocabulary=VocabularyConfig(trained_size=1024, attribute_words=6),
    tasks=TaskConfig(full_items=2, id_items=100, history_targets="next_item", preference_shows_id=True),
    queries=QueryConfig(mix=TaskMix(recommendation=3.0, search=1.0, preference=2.0, selection=1.0)),
    budget=Budget(tokens=512, images=12, answers=320),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(rows=8, block_examples=2048),
    optimizer=FROM_NOTHING,
    training=TrainingConfig(trains=ALL_PARTS),
    loop=LoopConfig(steps=400, validate_every=100, save_every=100),
)
"""Everything from nothing in minutes: what `make demo` trains."""
