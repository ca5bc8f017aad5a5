"""H&M's products: images, words and what is bought next."""

from __future__ import annotations

import dataclasses

from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import PARTS, presets
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
    model=dataclasses.replace(presets.small, decoder=dataclasses.replace(presets.small.decoder, dropout=0.3)),
    data=DataConfig("hm-products"),
    vocabulary=VocabularyConfig(trained_size=1024, attributes=("Color", "Section"), attribute_words=2),
    tasks=TaskConfig(
        full_items=12, id_items=30, history_targets="both", recommendation_at="last_id", questions_show_ids=True,
        ask_every=5,
    ),
    queries=QueryConfig(mix={"recommendation": 3.0, "search": 1.0, "rating": 0.0, "selection": 1.0}),
    row_shape=RowShape(tokens=512, images=40, answers=192),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=4, block_examples=2048),
    optimizer=FROM_NOTHING,
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=PARTS, validation_users=3000, guard=GuardConfig(spike=0)),
    loop=LoopConfig(steps=1500, log_every=25, validate_every=375, save_every=375),
)  # fmt: skip
