"""What this project and `IdeficsForVisionText2Text` of transformers are compared on: the same weights and examples.

A task of `training_speed` is a folder: `config.json`, the experiment; `ours/`, batches as the loader makes them;
`peer/`, a model folder of transformers, batches padded on the right, and `settings.json`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.images import ImageConfig, ImageStore
from data_pipelines.loader import BlockPlanner, LoaderConfig, fill_batch
from data_pipelines.prepare import prepare
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, RowShape
from data_pipelines.tasks.queries import TrainingQueries
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig, save_config
from experiments.data import ExperimentData, sized_model
from experiments.features import tower_features
from experiments.parameters import Parameters, init_parameters
from unimp_jax.interop import idefics
from unimp_jax.interop.clip import last_norm
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.shards import write_json
from unimp_jax.model import PARTS, DecoderConfig, ModelConfig, Part, ResamplerConfig
from unimp_jax.model.presets import POSTERS, blocks_of
from unimp_jax.model.vision import CLIP_DEVIATION, CLIP_MEAN
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig, make_mesh
from unimp_jax.training.optimizer import learning_rate_schedule

IGNORED = -100
"""The label of a token that is no answer."""


def films(size: str, data: Path, seed: int, *, clip_patches: bool = False, **parts: Any) -> ExperimentConfig:
    """The films of MovieLens small with poster and attributes, in float32.

    Args:
      size: as of `geometry`.
      data: where they are, or will be, prepared.
      parts: other fields of the configuration.
    """
    if not (data / "movielens_small").exists():
        print(prepare("movielens_small", data))
    return ExperimentConfig(
        model=geometry(size, clip_patches=clip_patches),
        data=DataConfig("movielens_small", data),
        vocabulary=VocabularyConfig(trained_size=2048, attributes=("Genres", "Year", "Title")),
        images=ImageConfig(fit="stretch"),
        seed=seed,
        **parts,
    )


def geometry(size: str, *, clip_patches: bool = False) -> ModelConfig:
    """An Idefics in OpenFlamingo 3B's proportions: the tower half as wide as the decoder, and as deep.

    Args:
      size: of the decoder, `WIDTH x LAYERS`.
      clip_patches: images of 224 pixels in 256 patches, as CLIP ViT-L/14 reads them, become 16 latents; else images
        of 32 pixels in 16 patches become 4.
    """
    width, layers = map(int, size.split(" x "))
    decoder = DecoderConfig(
        width=width, layers=layers, heads=max(width // 64, 2), mlp_width=4 * width, norm="rms_norm", bias=False,
        mlp="swiglu", tie_embeddings=True,
    )  # fmt: skip
    half = width // 2
    vision = dataclasses.replace(POSTERS, width=half, layers=layers, heads=max(half // 64, 1), mlp_width=4 * half)
    if clip_patches:
        vision = dataclasses.replace(vision, image_size=224, patch_size=14)
    return ModelConfig(
        vision=vision,
        resampler=ResamplerConfig(layers=1, heads=4, head_dim=16, latents=16 if clip_patches else 4, mlp="relu"),
        gated=blocks_of(decoder, every=2),
        decoder=decoder,
        compute_dtype="float32",
        unroll=layers,
    )


def export_weights(folder: Path, config: ModelConfig, *states: Any) -> Path:
    """What `from_pretrained` reads, in a new folder."""
    folder.mkdir()
    unread = last_norm(idefics.LAST_NORM, config.vision)
    write_weights(folder, named(*states), idefics.table(config), unread=unread)
    write_json(folder / "config.json", idefics.described_as(config))
    return folder


def padded(examples: Sequence[Example], images: ImageStore, side: Literal["left", "right"]) -> dict[str, np.ndarray]:
    """One example a row, as long as the longest of them, padded on a side; the arguments of the model's `forward`."""
    length, slots = max(len(one.tokens) for one in examples), max(len(one.images) for one in examples)
    tokens, attended = (np.zeros((len(examples), length), np.int64) for _ in range(2))
    mask = np.zeros((len(examples), length, slots), np.int64)
    pixels = np.zeros((len(examples), slots, 3, images.size, images.size), np.float32)
    for row, one in enumerate(examples):
        where = slice(length - len(one.tokens), length) if side == "left" else slice(len(one.tokens))
        tokens[row, where], attended[row, where] = one.tokens, 1
        shown = np.searchsorted(one.image_positions, np.arange(len(one.tokens)), side="right") - 1
        mask[row, where] = shown[:, None] == np.arange(slots)
        for place, item in enumerate(one.images):
            image = (images[int(item)].astype(np.float32) / 255 - CLIP_MEAN) / CLIP_DEVIATION
            pixels[row, place] = np.moveaxis(image, -1, 0)
    return {"input_ids": tokens, "attention_mask": attended, "pixel_values": pixels, "image_attention_mask": mask}


def labels(examples: Sequence[Example], length: int) -> np.ndarray:
    """int64 [examples, length], of rows padded on the right: a token where it is an answer, else `IGNORED`.

    Raises:
      ValueError: an answer is not the token that follows the place where it is asked, and no label can say so.
    """
    found = np.full((len(examples), length), IGNORED, np.int64)
    for row, one in enumerate(examples):
        asked, places = one.answer_weights > 0, one.answer_positions + 1
        if not np.array_equal(one.tokens[places[asked]], one.answer_targets[asked]):
            raise ValueError("an answer is not the next token: with such targets, transformers cannot be compared")
        found[row, places[asked]] = one.answer_targets[asked]
    return found


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
    return films(
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
    rows = [[askable(data.writer.write_planned(planned.layouts, one)) for one in row] for row in planned.rows]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        parameters = begin_open(config, mesh)
        export_weights(folder / "peer", config.model, parameters.trainable, parameters.frozen)
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
    arrays = [padded(examples, data.images, "right") for examples in batches]
    for examples, one in zip(batches, arrays, strict=True):
        one["labels"] = labels(examples, one["input_ids"].shape[1])
    save_batches(folder, arrays)


def save_batches(folder: Path, batches: Sequence[dict[str, np.ndarray]]) -> None:
    folder.mkdir()
    for number, arrays in enumerate(batches):
        np.savez(folder / f"{number}.npz", allow_pickle=False, **arrays)
