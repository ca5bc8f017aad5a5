"""MovieLens 1M, an hour on two cores."""

from __future__ import annotations

from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import PARTS, presets
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
    model=presets.small,
    data=DataConfig("movielens_1m"),
    vocabulary=VocabularyConfig(trained_size=512, attributes=("Genres", "Title"), attribute_words=4),
    tasks=TaskConfig(full_items=1, id_items=160, history_targets="next_item", ask_every=10),
    queries=QueryConfig(mix={"recommendation": 8.0, "search": 1.0, "rating": 0.0, "selection": 0.5}),
    row_shape=RowShape(tokens=512, images=10, answers=432),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=8, block_examples=4096),
    optimizer=FROM_NOTHING,
    training=TrainingConfig(trains=PARTS),
    loop=LoopConfig(steps=7000, log_every=25, validate_every=500, save_every=500),
)
