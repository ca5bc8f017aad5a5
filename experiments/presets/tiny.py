"""MovieLens small, minutes on two cores: the preset of `unimp demo`."""

import dataclasses

from data_pipelines.content import ContentConfig
from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import presets
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
    model=dataclasses.replace(presets.tiny, decoder=dataclasses.replace(presets.tiny.decoder, dropout=0.3)),
    vocabulary=VocabularyConfig(
        trained_size=512, attributes=("Genres", "Year", "Title"), attribute_words=5, category_items=1
    ),
    content=ContentConfig(attributes=("Category", "Year"), popularity=True, rating=True, co_occurrence=64),
    tasks=TaskConfig(
        full_items=2, id_items=60, ask_whole=False, history_targets="next_item", history_weight=0.5, ask_every=6,
        recommendation_at="last_id", rating_at="last_id", questions_show_ids=True,
        loss_weights={"search": 2.0, "rating": 2.0},
    ),
    queries=QueryConfig(
        mix={"recommendation": 2.0, "search": 5.0, "rating": 4.0, "selection": 0.25}, whole_rate=0.1
    ),
    row_shape=RowShape(tokens=256, images=3, answers=200),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=16, block_examples=2048),
    optimizer=dataclasses.replace(FROM_NOTHING, learning_rate=5e-3),
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=presets.tiny.parts),
    loop=LoopConfig(steps=700, log_every=25, validate_every=175, save_every=175),
)  # fmt: skip
