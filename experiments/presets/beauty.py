"""Amazon's Beauty in S3-Rec's sequences: ids and attributes."""

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
    model=dataclasses.replace(presets.tiny, decoder=dataclasses.replace(presets.tiny.decoder, dropout=0.3)),
    data=DataConfig("beauty"),
    vocabulary=VocabularyConfig(trained_size=512, attribute_words=4),
    content=ContentConfig(attributes=("Category",), popularity=True, co_occurrence=64),
    tasks=TaskConfig(
        full_items=2, id_items=50, ask_whole=False, history_targets="next_item", history_weight=0.5,
        recommendation_at="last_id",
    ),
    queries=QueryConfig(
        mix={"recommendation": 1.0, "search": 0.0, "rating": 0.0, "selection": 0.0}, whole_rate=0.05, window="latest",
        window_items=50,
    ),
    row_shape=RowShape(tokens=256, images=0, answers=200),
    loader=LoaderConfig(batch_size=16, block_examples=4096),
    optimizer=dataclasses.replace(FROM_NOTHING, learning_rate=4e-3),
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=presets.tiny.parts, validation_users=4096),
    loop=LoopConfig(steps=900, log_every=50, validate_every=150, save_every=150),
)  # fmt: skip
