"""SmolLM2-135M with a small vision tower and images among the tokens: initialise it from imported weights."""

import dataclasses

from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import presets
from unimp_jax.model.adapters import AdapterConfig
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
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
