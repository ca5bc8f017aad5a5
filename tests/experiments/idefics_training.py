"""transformers' `IdeficsForVisionText2Text`, trained in PyTorch from the same weights, on the same examples as a run.

Ours is the step that `unimp train` compiles, on the loader's packed rows. The peer has one example a row, padded on the
right to the longest of its batch, as the UniMP reference trains it. Float32, real geometry in small.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch
from flax import nnx
from jax.sharding import Mesh
from transformers import IdeficsForVisionText2Text

from data_pipelines.features import FeatureStore
from data_pipelines.images import ImageConfig, ImageStore
from data_pipelines.loader import BlockPlanner, LoaderConfig, fill_batch
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, RowShape
from data_pipelines.tasks.queries import TrainingQueries
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from experiments.data import ExperimentData, sized_model
from experiments.features import tower_features
from experiments.parameters import Parameters, init_parameters
from experiments.step import compile_step, init_state, to_device
from unimp_jax.interop import idefics
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.shards import write_json
from unimp_jax.interop.vision import last_norm
from unimp_jax.model import DecoderConfig, ModelConfig, Part, ResamplerConfig
from unimp_jax.model.presets import POSTERS, blocks_of
from unimp_jax.model.vision import CLIP_DEVIATION, CLIP_MEAN
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig, make_mesh
from unimp_jax.training.optimizer import learning_rate_schedule

IGNORED = -100
"""The label of a token that is no answer."""
GATE = 0.5
"""Where gates begin here: at 0, as they truly do, nothing of an image would be in the loss that is compared."""

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

    trains: tuple[Part, ...] = ModelConfig().parts
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

THEIR_MODULES: dict[Part, tuple[str, ...]] = {
    "vision": ("model.vision_model.",),
    "resampler": ("model.perceiver_resampler.",),
    "gated": ("model.gated_cross_attn_layers.",),
    "decoder": ("model.layers.", "model.norm."),
    "embeddings": ("model.embed_tokens.", "lm_head."),
}
"""How the names of a part's parameters begin in transformers."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What both sides train on.

    Attributes:
      rows: packed examples, which make whole batches of ours.
      features: what the frozen tower makes of images, where ours reads that in their place.
      weights: a model folder of transformers.
    """

    config: ExperimentConfig
    data: ExperimentData
    rows: list[list[Example]]
    features: FeatureStore | None
    weights: Path

    def batches(self) -> list[dict[str, np.ndarray]]:
        """Ours, as the loader makes them."""
        size, images = self.config.loader.batch_size, self.features or self.data.images
        parts = [self.rows[start : start + size] for start in range(0, len(self.rows), size)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return [fill_batch(part, self.config.row_shape, images, pool) for part in parts]

    def first(self) -> dict[str, np.ndarray]:
        """The examples of our first batch as one of the peer's."""
        return labelled([one for row in self.rows[: self.config.loader.batch_size] for one in row], self.data.images)

    def peer_batches(self, count: int) -> list[dict[str, np.ndarray]]:
        """The same examples, about so many a batch."""
        every = [example for row in self.rows for example in row]
        parts = np.array_split(np.arange(len(every)), max(round(len(every) / count), 1))
        return [labelled([every[one] for one in part], self.data.images) for part in parts]


def experiment(size: str, setting: str, rows: int, data: Path, seed: int) -> ExperimentConfig:
    """The experiment of a setting; `rows` are of 256 tokens, or half as many of 512."""
    one = SETTINGS[setting]
    return films(
        size, data, seed, clip_patches=one.clip_patches, tasks=one.tasks, row_shape=one.row_shape,
        loader=LoaderConfig(batch_size=rows * SHORT_ROWS.tokens // one.row_shape.tokens),
        objective=ObjectiveConfig(gamma=0.0),
        training=TrainingConfig(trains=one.trains, cache_features=one.cache_features),
    )  # fmt: skip


def prepare_task(config: ExperimentConfig, folder: Path, batches: int) -> Task:
    """The task of an experiment, with so many batches of ours; its files go into a new folder."""
    folder.mkdir()
    data = ExperimentData.load(config)
    config = sized_model(config, data.vocabulary)
    queries = TrainingQueries(data.corpus, config.queries, config.seed)
    planned = BlockPlanner(queries, data.writer, config.loader, config.seed)(0)
    kept = planned.rows[: batches * config.loader.batch_size]
    rows = [[askable(data.writer.write_planned(planned.layouts, one)) for one in row] for row in kept]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        parameters = begin_open(config, mesh)
        weights = export_weights(folder / "weights", config.model, parameters.trainable, parameters.frozen)
        features = None
        if config.training.cache_features:
            features = tower_features(data, parameters, mesh, folder / "features")
    return Task(config, data, rows, features, weights)


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


def labelled(examples: Sequence[Example], images: ImageStore) -> dict[str, np.ndarray]:
    """Examples as `padded` on the right, with labels: a token where it is an answer, else `IGNORED`."""
    batch = padded(examples, images, "right")
    labels = np.full_like(batch["input_ids"], IGNORED)
    for row, one in enumerate(examples):
        asked = one.answer_weights > 0
        labels[row, one.answer_positions[asked] + 1] = one.answer_targets[asked]
    return batch | {"labels": labels}


class Ours:
    """A run's state, and one step of training."""

    def __init__(self, task: Task, accumulate: int = 1):
        training = dataclasses.replace(task.config.training, accumulate=accumulate)
        self.config = config = dataclasses.replace(task.config, training=training)
        mesh = make_mesh(MeshConfig(data=-1))
        with jax.set_mesh(mesh):
            parameters = begin_open(config, mesh)
            self.state, self.frozen = init_state(config, parameters.trainable, mesh), parameters.frozen
            self._step = compile_step(config, parameters, self.state, mesh)
        self.place = to_device(mesh)

    def step(self, batch: Any) -> Any:
        """One step of training; its metrics, which may be still to come."""
        self.state, metrics = self._step(self.state, self.frozen, batch)
        return metrics


class Peer:
    """`IdeficsForVisionText2Text` and its optimizer, and one step of training as PyTorch is written."""

    def __init__(self, task: Task):
        config, optimizer = task.config, task.config.optimizer
        self.model = IdeficsForVisionText2Text.from_pretrained(
            task.weights, attn_implementation="sdpa", dtype=torch.float32
        ).train()
        trains = tuple(start for part in config.training.trains for start in THEIR_MODULES[part])
        decaying: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(trains))
            if parameter.requires_grad:
                decays = name.startswith(THEIR_MODULES["gated"]) and name.endswith("_proj.weight")
                (decaying if decays else others).append(parameter)
        self.trained = decaying + others
        groups = [
            {"params": decaying, "weight_decay": optimizer.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps, fused=True
        )
        self.rate, self.clip, self.done = learning_rate_schedule(optimizer, config.loop.steps), optimizer.clip, 0

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross entropy of the batch's answers, by the model's own loss function."""
        inputs = {name: array for name, array in batch.items() if name != "labels"}
        logits = self.model(**inputs, use_cache=False).logits
        # Given labels, the model itself would count its base vocabulary alone, and refuse logits of new tokens.
        return self.model.loss_function(logits=logits, labels=batch["labels"], vocab_size=logits.shape[-1])

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """One step of training; its loss, before."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rate(self.done))
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return loss.item()


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def films(size: str, data: Path, seed: int, *, clip_patches: bool = False, **parts: Any) -> ExperimentConfig:
    """The films of MovieLens small with poster and attributes, in float32.

    Args:
      size: as of `geometry`.
      data: where they are prepared.
      parts: other fields of the configuration.
    """
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
