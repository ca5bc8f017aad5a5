"""Models of our own: from minutes to an hour on a core or two, on MovieLens, H&M, Amazon's reviews and sequences."""

from __future__ import annotations

import dataclasses

from data_pipelines.content import ContentConfig
from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from unimp_jax.model import presets
from unimp_jax.model.adapters import AdapterConfig
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

DESCRIPTIONS = {
    "tiny": "MovieLens small, minutes on two cores: the preset of `unimp demo`.",
    "small": "MovieLens 1M, half an hour on one core.",
    "smol": "SmolLM2-135M with a small vision tower and images among the tokens: initialise it from imported weights.",
    "reviews": "Amazon's musical instruments: ratings and reviews, a quarter of an hour on one core.",
    "fashion": "H&M's products: their attributes and images, and the next purchase.",
    "beauty": "Amazon's Beauty in S3-Rec's sequences: ids and attributes.",
}

FROM_NOTHING = OptimizerConfig(
    learning_rate=4e-3, warmup=0.03, final=0.02, weight_decay=0.05, decay="matrices", b2=0.98
)
"""For models that are trained from scratch."""

tiny = ExperimentConfig(
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

small = ExperimentConfig(
    model=presets.small,
    data=DataConfig("movielens_1m"),
    vocabulary=VocabularyConfig(
        trained_size=512, attributes=("Genres", "Title"), attribute_words=4, category_items=1
    ),
    content=ContentConfig(attributes=("Category", "Year"), popularity=True, co_occurrence=64),
    tasks=TaskConfig(
        full_items=1, id_items=120, ask_whole=False, history_targets="next_item", history_weight=0.5, ask_every=8,
        recommendation_at="last_id", loss_weights={"search": 2.0},
    ),
    queries=QueryConfig(
        mix={"recommendation": 4.0, "search": 2.0, "rating": 0.0, "selection": 0.1}, whole_rate=0.05, window="latest",
        window_items=120,
    ),
    row_shape=RowShape(tokens=256, images=3, answers=224),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=16, block_examples=4096),
    optimizer=FROM_NOTHING,
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=presets.small.parts),
    loop=LoopConfig(steps=2800, log_every=25, validate_every=400, save_every=400),
)  # fmt: skip

smol = ExperimentConfig(
    model=dataclasses.replace(presets.smol, adapters=AdapterConfig(rank=16, alpha=32.0)),
    vocabulary=VocabularyConfig(attributes=("Genres", "Year", "Title")),
    tasks=TaskConfig(full_items=3, id_items=0, history_targets="next_item"),
    row_shape=RowShape(tokens=256, images=12, answers=64),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=2, block_examples=512),
    optimizer=dataclasses.replace(FROM_NOTHING, warmup=0.1),
    training=TrainingConfig(trains=("vision", "projector", "adapters", "embeddings"), validation_users=64),
    loop=LoopConfig(steps=60, log_every=5, validate_every=60, save_every=60),
)

reviews = ExperimentConfig(
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

fashion = ExperimentConfig(
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

beauty = ExperimentConfig(
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
