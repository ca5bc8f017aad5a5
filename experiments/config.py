"""One experiment as one object: data, prompts, model and training, each field settable from the command line."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic

from data_pipelines.atomic import write_json
from data_pipelines.content import ContentConfig
from data_pipelines.errors import DataError
from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import NO_CODES, QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.former_names import with_current_names, with_former_values
from experiments.places import Place
from unimp_jax.model import ModelConfig, Part
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig
from unimp_jax.training.checkpoint import CheckpointConfig
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

C = TypeVar("C")
adapter: Callable[[Any], pydantic.TypeAdapter[Any]] = functools.cache(pydantic.TypeAdapter)
"""Made once per class, because that takes a tenth of a second."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the records are."""

    source: str = "movielens_small"
    """A source that `unimp prepare` has prepared, by its own name or the one it was given."""
    folder: Place = Path("data")
    """Where `unimp prepare` has put it, on the disk or in an object store (s3://BUCKET/FOLDER, gs://BUCKET/FOLDER)."""
    split: Literal["time", "users"] = "time"
    """What is held out: the last two interactions of everybody, or those that the source prescribes; or, as in the
    paper, the last one of a tenth of the users for validation and of a tenth for test, of whom nothing is learnt."""
    split_seed: int = 0
    """By which the users, and cold items, are chosen."""
    cold_items: float = 0.0
    """This share of the items is kept out of training, catalogue and histories, and only asked about in evaluation, as
    new items with rows of their content; 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.cold_items < 1:
            raise ValueError(f"data.cold_items {self.cold_items} must be a share, 0 or more and less than 1")
        if self.split_seed < 0:
            raise ValueError(f"data.split_seed {self.split_seed} must be 0 or more")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What trains, and how."""

    trains: tuple[Part, ...] = ("resampler", "gated", "embeddings")
    """The parts whose parameters train; the others are frozen."""
    accumulate: int = 1
    """Parts that a batch is worked through in, one after the other."""
    elastic: bool = False
    """On more or fewer devices than the run began on, `mesh` is fitted to them, and `accumulate` so that a device has
    no more rows at a time than there; dropout is drawn by row, so that it does not depend on `accumulate`."""
    guard: GuardConfig = GuardConfig()
    """Which steps are skipped."""
    cache_features: bool = False
    """The frozen tower sees each image once, at the start; its output, kept in the folder of the run (2 bytes a
    channel and patch), takes the place of images in training."""
    validation_users: int = 512
    """So many users, evenly spread over all, are asked at each validation: published files are often sorted."""

    def __post_init__(self) -> None:
        for name in ("validation_users", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} {getattr(self, name)} must be above 0")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything that a run depends on."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    content: ContentConfig = ContentConfig()
    tasks: TaskConfig = TaskConfig()
    queries: QueryConfig = QueryConfig()
    row_shape: RowShape = RowShape()
    images: ImageConfig = ImageConfig()
    loader: LoaderConfig = LoaderConfig()
    mesh: MeshConfig = MeshConfig(data=-1)
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    loop: LoopConfig = LoopConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    init_from: Path | None = None
    """A folder that `unimp import` made: parts of the model begin with its weights, and have its geometry; text is cut
    by its tokenizer, where the vocabulary names no other. Or the folder of a run: its latest parameters and its
    vocabulary are taken, its step count, optimizer and position in the data are not."""
    seed: int = 0
    """Of the parameters, the order of the data and dropout."""

    def __post_init__(self) -> None:
        if absent := [part for part in self.training.trains if part not in self.model.parts]:
            raise ValueError(
                f"training.trains: a model whose fusion is {self.model.fusion} has no {absent[0]}; it has "
                f"{', '.join(self.model.parts)}"
            )
        if self.training.cache_features and "vision" in self.training.trains:
            raise ValueError("training: cache_features needs a frozen tower, but vision is among what trains")
        if self.model.decoder_quantization != "none" and "decoder" in self.training.trains:
            raise ValueError(
                f"model.decoder_quantization {self.model.decoder_quantization} is for a decoder that does not train: "
                "take decoder out of training.trains (its adapters may train)"
            )
        if self.queries.needs_codes and self.vocabulary.image_codes is None and self.init_from is None:
            raise ValueError(NO_CODES)
        if self.content.is_empty and self.init_from is None and self.model.decoder.free_row_dropout:
            raise ValueError("model.decoder.free_row_dropout drops free rows of tokens with content; see content")


WITHOUT_EFFECT = (
    "data.folder", "mesh", "model.attention", "model.unroll", "loader.threads", "loader.prefetch",
    "images.cache_megabytes", "loop.profile_steps", "loop.hang_seconds", "loop.wandb",
    "training.cache_features", "checkpoint.keep_latest",
)  # fmt: skip
"""Fields, each with all that lies below it, on which no result depends (but for rounding)."""
CHANGEABLE = (
    *WITHOUT_EFFECT, "model.remat", "training.accumulate", "training.elastic", "training.guard", "guard",
    "objective.chunk", "loop.log_every", "loop.validate_every", "loop.save_every",
)  # fmt: skip
"""What may change between a run's start and its continuation, on other hardware, say; `loop.steps` may also grow."""


WHY_NOT = {
    "loop.steps": " (a run may be made longer, not shorter)",
    "loader.planner": " (rows are planned otherwise than where it was begun; that version of the project can go on)",
}


def among(name: str, fields: tuple[str, ...]) -> bool:
    """Whether a dotted name is that of one of the fields, or lies below one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def save_config(config: Any, path: Path) -> None:
    """Whole or not at all: half a configuration would keep a run that was killed here from going on."""
    write_json(path, to_json(config))


def load_config(path: Path) -> ExperimentConfig:
    """
    Raises:
      DataError: the file is missing or does not describe an experiment.
    """
    return read_config(path, ExperimentConfig)


def read_config(path: Path, kind: type[C]) -> C:
    """A configuration of one kind; raises as `load_config` does."""
    try:
        saved = with_former_values(with_current_names(adapter(dict[str, Any]).validate_json(path.read_bytes())))
        config = adapter(kind).validate_json(json.dumps(saved))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} does not exist: is {path.parent} the folder of a run?") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place or 'the file'}: {first['msg']}") from error
    known = flat(to_json(config))
    if unknown := [name for name in flat(saved) if name not in known]:
        raise DataError(f"{path}: {unknown[0]} is no field of this version: another one wrote the file; use that one")
    return config


def to_json(config: Any) -> dict[str, Any]:
    return adapter(type(config)).dump_python(config, mode="json")


def settings(config: ExperimentConfig) -> dict[str, Any]:
    """Every field on which results depend, by its dotted name."""
    return {name: value for name, value in flat(to_json(config)).items() if not among(name, WITHOUT_EFFECT)}


def differences(old: C, new: C) -> list[str]:
    """`field: old, now new` for each field that differs and must not, as a run goes on."""
    return [
        f"{name}: {before}, now {after}{WHY_NOT.get(name, '')}"
        for name, (before, after) in _changes(old, new).items()
        if not among(name, CHANGEABLE) and not (name == "loop.steps" and after > before)
    ]


def refuse_changes(old: C, new: C, folder: Path) -> None:
    """Checks that the run in a folder can go on with another configuration.

    Raises:
      DataError: it cannot.
    """
    changed = differences(old, new)
    if changed:
        raise DataError(
            f"{folder} holds a run of another configuration ({'; '.join(changed[:3])}"
            f"{' …' if len(changed) > 3 else ''}); name another folder to start anew"
        )


def note_changes(old: Any, new: Any, path: Path) -> None:
    """Writes the configuration that a run goes on with in the place of the one it had, and prints what changed."""
    for name, (before, after) in _changes(old, new).items():
        print(f"{name}: {before}, now {after}")
        if name == "loop.steps":
            optimizer = new.optimizer
            rate = optimizer.final * optimizer.learning_rate
            print(f"the learning rate now falls from {optimizer.learning_rate:g} to {rate:g} at step {after}")
    if _changes(old, new):
        save_config(new, path)


def _changes(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """(old, new) of each field that differs."""
    before, after = flat(to_json(old)), flat(to_json(new))
    pairs = {name: (before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested fields by their dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves
