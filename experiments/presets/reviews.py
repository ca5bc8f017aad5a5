"""Amazon's musical instruments: ratings and reviews, a quarter of an hour on one core."""

import dataclasses

from data_pipelines.content import ContentConfig
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
    model=dataclasses.replace(
        presets.reviews, decoder=dataclasses.replace(presets.reviews.decoder, dropout=0.3)
    ),
    data=DataConfig("amazon_instruments_2014"),
    vocabulary=VocabularyConfig(trained_size=2048),
    content=ContentConfig(popularity=True, rating=True, co_occurrence=32),
    tasks=TaskConfig(
        full_items=0, id_items=40, history_targets="next_item", history_weight=0.5, recommendation_at="last_id",
        rating_at="last_id", questions_show_ids=True, loss_weights={"rating": 2.0},
    ),
    queries=QueryConfig(mix={"recommendation": 2.0, "search": 0.0, "rating": 8.0, "selection": 0.25}),
    row_shape=RowShape(tokens=512, images=0, answers=480),
    loader=LoaderConfig(batch_size=8, block_examples=2048),
    optimizer=dataclasses.replace(FROM_NOTHING, learning_rate=2e-3),
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=presets.reviews.parts),
    loop=LoopConfig(steps=600, log_every=25, validate_every=150, save_every=150),
)  # fmt: skip
