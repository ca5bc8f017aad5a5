"""Training: this project's step against transformers' `IdeficsForVisionText2Text` trained in PyTorch.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 JAX_PLATFORMS=cpu python -m experiments.benchmarks.training_speed --data data

One process, the same weights, the same real examples (MovieLens small, five films with poster and attributes each,
four tasks, as the paper has them), float32, the same optimizer. Ours is the step that `unimp train` compiles, on the
loader's packed rows, ready in memory. The peer has one example a row, padded on the right to the longest of its batch,
as the UniMP reference trains it; AdamW is the fused one, and nothing is recorded for the gradient of what is frozen.
Both must give the same loss of the same examples.

Both are timed in turns. The peer is tried with several sizes of a batch, of which the fastest counts. What counts is
answer tokens a second: tokens that are trained on. A step works in memory that is allocated anew each time; in pages of
4 KB in the place of 2 MB (`GLIBC_TUNABLES`, above) that takes a good part of a small step, on both sides.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tyro
from flax import nnx
from jax.sharding import Mesh
from transformers import IdeficsForVisionText2Text

from data_pipelines.features import FeatureStore
from data_pipelines.images import ImageStore
from data_pipelines.loader import BlockPlanner, LoaderConfig, fill_batch
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, RowShape
from data_pipelines.tasks.queries import TrainingQueries
from experiments.benchmarks.beside_transformers import export_weights, films, padded
from experiments.benchmarks.measuring import CORES, print_header, print_row, runs_a_second
from experiments.config import ExperimentConfig, TrainingConfig
from experiments.data import ExperimentData, sized_model
from experiments.features import tower_features
from experiments.parameters import Parameters, init_parameters
from experiments.step import batch_shape, compile_step, init_state, optimizer_of, to_device
from unimp_jax.model import ModelConfig, Part
from unimp_jax.model.flops import training_step_flops
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig, make_mesh
from unimp_jax.training.optimizer import learning_rate_schedule
from unimp_jax.training.peak import measured_matmul_flops

IGNORED = -100
"""The label of a token that is no answer."""
GATE = 0.5
"""Where gates begin here: at 0, as they truly do, nothing of an image would be in the loss that is compared."""
TRAINED = {"64 x 2": (16, 4), "128 x 4": (16, 4), "256 x 6": (16, 2), "512 x 8": (8, 2)}
"""Size -> rows a batch, of 256 tokens each, and batches, for ours."""

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


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared."""

    data: Path = Path("data")
    """Where MovieLens small is, or will be, prepared."""
    sizes: tuple[str, ...] = tuple(TRAINED)
    settings: tuple[str, ...] = tuple(SETTINGS)
    """What examples are like, and what trains."""
    repeats: int = 3
    """Timings a side, in turns; their median is taken."""
    seconds: float = 5.0
    """That a timing takes at least."""
    devices: int = CORES
    """Host devices of ours."""
    accumulate: int = 2
    """Parts that ours works a batch through in."""
    peer_batches: tuple[int, ...] = (8, 16, 32)
    """Examples a batch that the peer is tried with."""
    tolerance: float = 1e-4
    """How far apart the two losses may be."""
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What both sides train on.

    Attributes:
      rows: packed examples, which make whole batches of ours.
      features: what the frozen tower makes of images, where ours reads that in their place.
      weights: a model folder of transformers.
      made_in: seconds that the features took.
    """

    config: ExperimentConfig
    data: ExperimentData
    rows: list[list[Example]]
    features: FeatureStore | None
    weights: Path
    made_in: float

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
        start, features = time.perf_counter(), None
        if config.training.cache_features:
            features = tower_features(data, parameters, mesh, folder / "features")
    return Task(config, data, rows, features, weights, time.perf_counter() - start)


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
            optimizer = optimizer_of(config)
            self.state, self.frozen = init_state(parameters.trainable, optimizer, mesh), parameters.frozen
            self._step = compile_step(config, parameters, optimizer, self.state, mesh)
        self.place = to_device(mesh)

    def step(self, batch: Any) -> Any:
        """One step of training; its metrics, which may be still to come."""
        self.state, metrics = self._step(self.state, self.frozen, batch)
        return metrics

    def steps(self, batches: Sequence[Any]) -> None:
        """A step a batch, after which nothing is still to come."""
        for batch in batches:
            metrics = self.step(batch)
        jax.block_until_ready((metrics, self.state))


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

    def steps(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """A step a batch."""
        for batch in batches:
            self.step(batch)


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def compare(size: str, setting: str, options: Options, folder: Path) -> list[str]:
    """A row of the table.

    Raises:
      RuntimeError: the losses differ.
    """
    rows, count = TRAINED[size]
    task = prepare_task(experiment(size, setting, rows, options.data, options.seed), folder / "task", count)
    ours, peer, arrays = Ours(task, options.accumulate), Peer(task), task.batches()
    answers = sum(int((one["answer_weights"] > 0).sum()) for one in arrays)
    batches = [ours.place(one) for one in arrays]
    theirs = {many: [tensors(one) for one in task.peer_batches(many)] for many in options.peer_batches}
    with torch.no_grad():
        losses = float(ours.step(batches[0]).loss), float(peer.loss(tensors(task.first())))
    if abs(losses[0] - losses[1]) > options.tolerance:
        raise RuntimeError(f"{size}, {setting}: our loss is {losses[0]}, the peer's {losses[1]}")
    peer.step(next(iter(theirs.values()))[0])  # a first step is not timed, ours was done above
    turns = []
    for _ in range(options.repeats):
        own = runs_a_second(functools.partial(ours.steps, batches), options.seconds)
        others = [runs_a_second(functools.partial(peer.steps, some), options.seconds) for some in theirs.values()]
        turns.append([own, *others])
    rates = answers * np.array(turns)
    medians, spreads = np.median(rates, axis=0), rates.max(axis=0) / rates.min(axis=0)
    best = 1 + int(medians[1:].argmax())
    config, model = ours.config, ours.config.model
    tower = not config.training.cache_features
    flops = training_step_flops(model, batch_shape(config), frozenset(config.training.trains), tower=tower)
    of_peak = medians[0] / answers * len(batches) * flops / measured_matmul_flops("float32", 4096)
    parameters = sum(x.size for x in jax.tree.leaves((ours.state.trainable, ours.frozen)))
    return [
        size, f"{parameters / 1e6:.1f} M", setting, f"{medians[best]:.0f} ({spreads[best]:.2f})",
        f"{options.peer_batches[best - 1]}", f"**{medians[0]:.0f}** ({spreads[0]:.2f})",
        f"**{medians[0] / medians[best]:.2f}**", f"{of_peak:.0%}", f"{task.made_in:.0f}",
    ]  # fmt: skip


def main(options: Options) -> None:
    jax.config.update("jax_num_cpu_devices", options.devices)
    torch.set_num_threads(CORES)
    print(
        f"{CORES} cores, {options.devices} devices, a batch in {options.accumulate} parts, float32, median of "
        f"{options.repeats}, seed {options.seed}\n"
    )
    print_header(
        [
            "model", "parameters", "setting", "peer, answers/s (max/min)", "a batch", "ours, **answers/s** (max/min)",
            "**ratio**", "of the peak", "features (s)",
        ]
    )  # fmt: skip
    for size in options.sizes:
        for setting in options.settings:
            with tempfile.TemporaryDirectory() as folder:
                print_row(compare(size, setting, options, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
