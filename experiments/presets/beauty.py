"""Amazon's Beauty as S3-Rec's sequences: ids and attributes."""

from __future__ import annotations

import dataclasses

from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import presets
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
    model=dataclasses.replace(presets.tiny, decoder=dataclasses.replace(presets.tiny.decoder, dropout=0.3)),
    data=DataConfig("beauty"),
    vocabulary=VocabularyConfig(trained_size=2048, attribute_words=6),
    tasks=TaskConfig(full_items=12, id_items=50, history_targets="both", recommendation_at="last_id"),
    queries=QueryConfig(
        mix={"recommendation": 1.0, "search": 0.0, "rating": 0.0, "selection": 0.0},
        window="latest",
        window_items=50,
    ),
    row_shape=RowShape(tokens=256, images=0, answers=80),
    loader=LoaderConfig(batch_size=16, block_examples=4096),
    optimizer=dataclasses.replace(FROM_NOTHING, learning_rate=5e-3),
    objective=ObjectiveConfig(gamma=0.0, chunk=8),
    training=TrainingConfig(trains=presets.tiny.parts, validation_users=4096),
    loop=LoopConfig(steps=5000, log_every=50, validate_every=1000, save_every=1000),
)
