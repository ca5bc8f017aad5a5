"""Minutes on two cores: what `unimp demo` trains on MovieLens small."""

from __future__ import annotations

from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import PARTS, presets
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
    model=presets.tiny,
    vocabulary=VocabularyConfig(trained_size=512, attributes=("Genres", "Year", "Title"), attribute_words=5),
    tasks=TaskConfig(
        full_items=2, id_items=100, history_targets="next_item", history_weight=0.3, questions_show_ids=True
    ),
    queries=QueryConfig(mix={"recommendation": 2.0, "search": 2.0, "rating": 2.0, "selection": 2.0}),
    row_shape=RowShape(tokens=512, images=16, answers=320),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=8, block_examples=2048),
    optimizer=FROM_NOTHING,
    training=TrainingConfig(trains=PARTS),
    loop=LoopConfig(steps=1000, log_every=20, validate_every=200, save_every=200),
)
