"""Amazon's musical instruments: what users rate and write, half an hour on a core."""

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
    model=presets.reviews,
    data=DataConfig("amazon_instruments_2014"),
    vocabulary=VocabularyConfig(trained_size=2048),
    tasks=TaskConfig(
        full_items=0, id_items=40, history_targets="next_item", history_weight=0.3, questions_show_ids=True
    ),
    queries=QueryConfig(mix={"recommendation": 1.0, "search": 1.0, "rating": 8.0, "selection": 1.0}),
    row_shape=RowShape(tokens=512, images=0, answers=480),
    loader=LoaderConfig(batch_size=8, block_examples=2048),
    optimizer=dataclasses.replace(FROM_NOTHING, learning_rate=2e-3),
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=presets.reviews.parts),
    loop=LoopConfig(steps=1500, log_every=25, validate_every=500, save_every=500),
)
