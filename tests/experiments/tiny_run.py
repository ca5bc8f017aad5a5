"""A run that is over in seconds: few small records, a model of a few thousand parameters."""

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np

from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.prepare import prepare
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from tests.data_pipelines.small import image
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    VisionConfig,
)
from unimp_jax.sharding import MeshConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

MODEL = ModelConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_width=32),
    resampler=ResamplerConfig(layers=1, heads=2, head_dim=8, latents=4, mlp_ratio=2),
    gated=GatedCrossAttentionConfig(every=2, heads=2, head_dim=8, mlp_ratio=2),
    decoder=DecoderConfig(width=32, layers=2, heads=4, mlp_width=64, tie_embeddings=True, dropout=0.1),
    compute_dtype="float32",
)
SHALLOW = dataclasses.replace(
    MODEL, gated=dataclasses.replace(MODEL.gated, every=1), decoder=dataclasses.replace(MODEL.decoder, layers=1)
)
UNCUT = RowShape(tokens=126, images=8, answers=64)
"""Of no multiple of four tokens: CPUs compute attention to these in one piece, which makes programs smaller."""
QUICK = {"model": SHALLOW, "row_shape": UNCUT}
"""Changes of `experiment` that let programs compile in less time, for what hangs neither on depth nor on rows."""


def write_source(folder: Path, users: int = 40, items: int = 30) -> Path:
    """A folder in the layout of movielens-small."""
    rng = np.random.default_rng(0)
    inside = folder / "movielens-small"
    inside.mkdir(parents=True)
    genres = ["Action", "Comedy", "Drama", "Horror"]
    films = [
        {"item_id": n, "title": f"Film {n}", "year": 1990 + n % 20, "genres": rng.permutation(genres)[:2].tolist()}
        for n in range(1, items + 1)
    ]
    (inside / "items.jsonl").write_text("".join(json.dumps(film) + "\n" for film in films))
    lines = []
    for user in range(users):
        met = rng.permutation(items)[: rng.integers(4, items - 5)] + 1
        events = [
            {"time": time, "item_id": int(item), "rating": float(rng.integers(1, 6))}
            for time, item in enumerate(met, start=1_000_000_000)
        ]
        lines.append({"user": user, "events": events})
    (inside / "users.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with zipfile.ZipFile(folder / "posters.zip", "w") as posters:
        for film in films[1:]:
            posters.writestr(zipfile.ZipInfo(f"{film['item_id']}.jpg"), image(film["item_id"]))
    return folder


def prepare_source(folder: Path) -> Path:
    """The prepared records of `write_source`."""
    prepare("movielens_small", folder / "data", write_source(folder / "source"))
    return folder / "data"


def experiment(data: Path, *, steps: int = 12, **changes) -> ExperimentConfig:
    config = ExperimentConfig(
        model=MODEL,
        data=DataConfig("movielens_small", data),
        vocabulary=VocabularyConfig(trained_size=320, attribute_words=4),
        tasks=TaskConfig(full_items=2, id_items=8, history_targets="next_item"),
        queries=QueryConfig(),
        row_shape=RowShape(tokens=128, images=8, answers=64),
        images=ImageConfig(fit="stretch"),
        loader=LoaderConfig(batch_size=8, block_examples=64),
        mesh=MeshConfig(data=-1),
        optimizer=OptimizerConfig(learning_rate=1e-2, decay="matrices"),
        training=TrainingConfig(trains=MODEL.parts),
        loop=LoopConfig(steps=steps, log_every=1, validate_every=4, save_every=2),
    )
    return dataclasses.replace(config, **changes)
