"""What both sides of `training_speed` train on: one experiment, and the same weights and examples for each of them.

A task is a folder: `config.json`, the experiment; `ours/`, batches as the loader makes them; `peer/`, a model folder of
transformers, batches padded on the right, and `settings.json`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.loader import BlockPlanner, LoaderConfig, fill_batch
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, RowShape
from data_pipelines.tasks.queries import TrainingQueries
from experiments.benchmarks import peer
from experiments.config import ExperimentConfig, TrainingConfig, save_config
from experiments.data import ExperimentData, sized_model
from experiments.features import tower_features
from experiments.parameters import Parameters, init_parameters
from unimp_jax.model import PARTS, Part
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig, make_mesh
from unimp_jax.training.optimizer import learning_rate_schedule

PAPER = TaskConfig(
    full_items=5, id_items=0, history_targets="reconstruct", rated_history=False,
    loss_weights={"recommendation": 1.0},
)  # fmt: skip
LONG = dataclasses.replace(PAPER, full_items=2, id_items=100)
SHORT_ROWS, LONG_ROWS = RowShape(tokens=256, images=15, answers=34), RowShape(tokens=512, images=16, answers=320)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What examples are like, and what trains.

    Attributes:
      clip_patches: images are as large as CLIP's.
      cache_features: ours reads what the frozen tower makes of an image from a file, written once for the catalogue.
    """

    trains: tuple[Part, ...] = PARTS
    tasks: TaskConfig = PAPER
    row_shape: RowShape = SHORT_ROWS
    clip_patches: bool = False
    cache_features: bool = False


RECIPE = TrainingConfig().trains
SETTINGS: dict[str, Setting] = {
    "all": Setting(),
    "recipe": Setting(RECIPE),
    "clip": Setting(RECIPE, clip_patches=True),
    "clip, cached": Setting(RECIPE, clip_patches=True, cache_features=True),
    "histories": Setting(tasks=LONG, row_shape=LONG_ROWS),
}
"""The paper's examples, of five films with posters and attributes and a question of one of four tasks: everything
trains, or what the paper trains (resampler, gated blocks and embeddings); the latter also with images of CLIP's size,
which its frozen tower reads at each step, or, for ours, once and for all. And whole histories, as the preset `tiny` has
them: up to a hundred films by their ids alone, each a target, before two with poster and attributes."""

GATE = 0.5
"""Where gates begin here: at 0, as they truly do, nothing of an image would be in the loss that is compared."""

THEIR_MODULES: dict[Part, tuple[str, ...]] = {
    "vision": ("model.vision_model.",),
    "resampler": ("model.perceiver_resampler.",),
    "gated": ("model.gated_cross_attn_layers.",),
    "decoder": ("model.layers.", "model.norm."),
    "embeddings": ("model.embed_tokens.", "lm_head."),
}
"""How the names of a part's parameters begin in transformers."""


def experiment(size: str, setting: str, rows: int, data: Path, seed: int) -> ExperimentConfig:
    """The experiment of a setting; `rows` are of 256 tokens, or half as many of 512."""
    one = SETTINGS[setting]
    return peer.experiment(
        size, data, seed, clip_patches=one.clip_patches, tasks=one.tasks, row_shape=one.row_shape,
        loader=LoaderConfig(batch_size=rows * SHORT_ROWS.tokens // one.row_shape.tokens),
        objective=ObjectiveConfig(gamma=0.0),
        training=TrainingConfig(trains=one.trains, cache_features=one.cache_features),
    )  # fmt: skip


def askable(example: Example) -> Example:
    """Without answers that are not the token that follows, which transformers cannot be asked for: the film that comes
    after one whose attributes stand in between."""
    places = np.minimum(example.answer_positions + 1, len(example.tokens) - 1)
    is_next = example.tokens[places] == example.answer_targets
    return dataclasses.replace(example, answer_weights=np.where(is_next, example.answer_weights, 0.0))


def begin_open(config: ExperimentConfig, mesh: Mesh) -> Parameters:
    """The parameters of step 0, with gates that let something through."""

    def opened(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        return variable.replace(variable[...] + GATE) if str(path[-1]).endswith("_gate") else variable

    parameters = init_parameters(config, mesh)
    return dataclasses.replace(parameters, trainable=nnx.map_state(opened, parameters.trainable))


def prepare_task(config: ExperimentConfig, folder: Path, batches: int, peer_batches: Sequence[int]) -> float:
    """Writes the task.

    Args:
      config: as of `experiment`.
      folder: it is made.
      batches: so many of ours, with what fills them; the peer's hold the same examples.
      peer_batches: examples a batch, each a way to cut them.

    Returns:
      Seconds that the catalogue's features took, where they are cached.
    """
    folder.mkdir()
    data = ExperimentData.load(config)
    config = sized_model(config, data.vocabulary)
    save_config(config, folder / "config.json")
    queries = TrainingQueries(data.corpus, config.queries, config.seed)
    planned = BlockPlanner(queries, data.writer, config.loader, config.seed)(0)
    rows = [[askable(example) for example in row] for row in planned.rows]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        parameters = begin_open(config, mesh)
        peer.export_weights(folder / "peer", config.model, parameters.trainable, parameters.frozen)
        start = time.perf_counter()
        cached = config.training.cache_features
        images = tower_features(data, parameters, mesh, folder / "features") if cached else data.images
        made_in = time.perf_counter() - start
    size = config.loader.batch_size
    ours = [rows[start : start + size] for start in range(0, batches * size, size)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        save_batches(folder / "ours", [fill_batch(batch, config.row_shape, images, pool) for batch in ours])
    every = [example for batch in ours for row in batch for example in row]
    save_padded(folder / "peer" / "first", [[example for row in ours[0] for example in row]], data)
    for count in peer_batches:
        parts = np.array_split(np.arange(len(every)), max(round(len(every) / count), 1))
        save_padded(folder / "peer" / str(count), [[every[one] for one in part] for part in parts], data)
    optimizer = config.optimizer
    schedule = learning_rate_schedule(optimizer, config.loop.steps)
    settings = {
        "trains": [start for part in config.training.trains for start in THEIR_MODULES[part]],
        "decays": list(THEIR_MODULES["gated"]),
        "rates": [float(schedule(step)) for step in range(100)],
        "weight_decay": optimizer.weight_decay,
        "betas": [optimizer.b1, optimizer.b2],
        "eps": optimizer.eps,
        "clip": optimizer.clip,
    }
    (folder / "peer" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return made_in


def save_padded(folder: Path, batches: Sequence[Sequence[Example]], data: ExperimentData) -> None:
    arrays = [peer.padded(examples, data.images, "right") for examples in batches]
    for examples, one in zip(batches, arrays, strict=True):
        one["labels"] = peer.labels(examples, one["input_ids"].shape[1])
    save_batches(folder, arrays)


def save_batches(folder: Path, batches: Sequence[dict[str, np.ndarray]]) -> None:
    folder.mkdir()
    for number, arrays in enumerate(batches):
        np.savez(folder / f"{number}.npz", allow_pickle=False, **arrays)
