"""Experiments by name, from minutes on two cores to weeks on a pod."""

from __future__ import annotations

import dataclasses

from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from unimp_jax.model import PARTS, presets
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

FROM_NOTHING = OptimizerConfig(
    learning_rate=4e-3, warmup=0.03, final=0.02, weight_decay=0.05, decay="matrices", b2=0.98
)
"""For small models whose every parameter is new."""

TINY = ExperimentConfig(
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

SMALL = ExperimentConfig(
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

REVIEWS = ExperimentConfig(
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
    training=TrainingConfig(trains=PARTS),
    loop=LoopConfig(steps=1500, log_every=25, validate_every=500, save_every=500),
)


FASHION = ExperimentConfig(
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

BEAUTY = ExperimentConfig(
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
    training=TrainingConfig(trains=PARTS, validation_users=4096),
    loop=LoopConfig(steps=5000, log_every=50, validate_every=1000, save_every=1000),
)


def as_published(model: str) -> ExperimentConfig:
    """The paper's recipe around one of its models: the resampler, the gated blocks and the embeddings train."""
    return ExperimentConfig(
        model=getattr(presets, model),
        tasks=TaskConfig(full_items=5, id_items=0, history_targets="reconstruct", rated_history=False),
        loader=LoaderConfig(batch_size=64, threads=16),
        row_shape=RowShape(tokens=1024, images=24, answers=256),
        objective=ObjectiveConfig(chunk=256),  # all at once: the head's gradient crosses the mesh once
        loop=LoopConfig(steps=20_000, log_every=10, validate_every=1000, save_every=500),
    )


SMOL = ExperimentConfig(
    model=presets.smol,
    vocabulary=VocabularyConfig(attributes=("Genres", "Year", "Title")),
    tasks=TaskConfig(full_items=3, id_items=0, history_targets="next_item"),
    row_shape=RowShape(tokens=256, images=12, answers=64),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=2, block_examples=512),
    optimizer=dataclasses.replace(FROM_NOTHING, warmup=0.1, decay="gated"),
    training=TrainingConfig(trains=("vision", "resampler", "gated", "embeddings"), validation_users=64),
    loop=LoopConfig(steps=60, log_every=5, validate_every=60, save_every=60),
)

PRESETS: dict[str, ExperimentConfig] = {
    "tiny": TINY,
    "small": SMALL,
    "smol": SMOL,
    "reviews": REVIEWS,
    "fashion": FASHION,
    "beauty": BEAUTY,
    **{
        name.replace("_", "-"): as_published(name)
        for name in ("openflamingo_3b", "openflamingo_4b", "openflamingo_9b", "idefics_9b")
    },
}
DESCRIPTIONS: dict[str, str] = {
    "tiny": "Minutes on two cores: what `unimp demo` trains on MovieLens small.",
    "small": "MovieLens 1M, an hour on two cores.",
    "smol": "SmolLM2-135M behind a small vision tower: start it from imported weights.",
    "reviews": "Amazon's musical instruments: what users rate and write, half an hour on a core.",
    "fashion": "H&M's products: images, words and what is bought next.",
    "beauty": "Amazon's Beauty as S3-Rec's sequences: ids and attributes.",
    "openflamingo-3b": "CLIP ViT-L/14 and MPT-1B.",
    "openflamingo-4b": "CLIP ViT-L/14 and RedPajama-INCITE-3B.",
    "openflamingo-9b": "CLIP ViT-L/14 and MPT-7B.",
    "idefics-9b": "CLIP ViT-H/14 and LLaMA-7B.",
}
