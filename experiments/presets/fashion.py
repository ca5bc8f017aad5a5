"""H&M's products: their attributes and images, and the next purchase."""

import dataclasses

from data_pipelines.content import ContentConfig
from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import presets
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
    model=dataclasses.replace(
        presets.small, decoder=dataclasses.replace(presets.small.decoder, dropout=0.3, free_row_dropout=0.5)
    ),
    data=DataConfig("hm-products"),
    vocabulary=VocabularyConfig(
        trained_size=512, attributes=("Color", "Section"), attribute_words=2, category_items=1
    ),
    content=ContentConfig(
        attributes=("Category", "Color", "Section", "Appearance"), popularity=True, co_occurrence=64
    ),
    tasks=TaskConfig(
        full_items=2, id_items=40, ask_whole=False, history_targets="next_item", history_weight=0.5, ask_every=5,
        recommendation_at="last_id", questions_show_ids=True, loss_weights={"search": 2.0},
    ),
    queries=QueryConfig(
        mix={"recommendation": 4.0, "search": 2.0, "rating": 0.0, "selection": 0.25}, whole_rate=0.05,
        window="latest", window_items=40,
    ),
    row_shape=RowShape(tokens=256, images=3, answers=200),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=16, block_examples=2048),
    optimizer=FROM_NOTHING,
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=presets.small.parts, validation_users=3000, guard=GuardConfig(spike=0)),
    loop=LoopConfig(steps=400, log_every=25, validate_every=100, save_every=100),
)  # fmt: skip
