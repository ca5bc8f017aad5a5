"""The configuration of an experiment: data, prompts, model and training; each field is a command-line option."""

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
from experiments.path_options import PathOrURL
from unimp_jax.model import ModelConfig, Part
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig
from unimp_jax.training.checkpoint import CheckpointConfig
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

C = TypeVar("C")
adapter: Callable[[Any], pydantic.TypeAdapter[Any]] = functools.cache(pydantic.TypeAdapter)
"""Returns the pydantic adapter of a class; cached, because building one takes a tenth of a second."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records are used, and how they are split."""

    source: str = "movielens_small"
    """Name of a source prepared by `unimp prepare`: its own name or the one given to it there."""
    folder: PathOrURL = Path("data")
    """Folder of the prepared sources, on disk or in an object store (s3://BUCKET/FOLDER, gs://BUCKET/FOLDER)."""
    split: Literal["time", "users"] = "time"
    """Held-out interactions. time: the last two of each user, or those that the source prescribes; users: as in the
    paper, the last one of a tenth of the users for validation and of a tenth for test, none of whom is trained on."""
    split_seed: int = 0
    """Seed for choosing the held-out users and the cold items."""
    cold_items: float = 0.0
    """Share of the items kept out of training, catalogue and histories; evaluation alone asks about them, as new items
    with rows computed from their content. 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.cold_items < 1:
            raise ValueError(f"data.cold_items {self.cold_items} must be a share of at least 0 and below 1")
        if self.split_seed < 0:
            raise ValueError(f"data.split_seed {self.split_seed} must be 0 or more")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What is trained, and how."""

    trains: tuple[Part, ...] = ("resampler", "gated", "embeddings")
    """The parts whose parameters are trained; all others are frozen."""
    accumulate: int = 1
    """Number of parts into which a batch is split; their gradients are accumulated one after the other."""
    elastic: bool = False
    """If the number of devices has changed since the run began, fit `mesh` to them, and `accumulate` so that no device
    processes more rows at a time than before; dropout is drawn per row, so that it does not depend on `accumulate`."""
    guard: GuardConfig = GuardConfig()
    """Which training steps are skipped."""
    cache_features: bool = False
    """Run the frozen vision tower once per image, at the start, store its output in the run folder (2 bytes per channel
    and patch), and train on it instead of on images."""
    validation_users: int = 512
    """Number of users asked at each validation, spread evenly over all because published files are often sorted."""

    def __post_init__(self) -> None:
        for name in ("validation_users", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} {getattr(self, name)} must be above 0")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything that determines a run."""

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
    """A folder made by `unimp import`: parts of the model start from its weights and take its geometry, and its
    tokenizer is used unless the vocabulary names another. Or a run folder: its latest parameters and its vocabulary are
    used, but not its step count, optimizer state or position in the data."""
    seed: int = 0
    """Seed of the parameters, the data order and dropout."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:  # of larger ones JAX uses the lower 32 bits, or none
            raise ValueError(f"seed {self.seed} must be 0 or more, and below 2^32")
        if absent := [part for part in self.training.trains if part not in self.model.parts]:
            raise ValueError(
                f"training.trains: a model with fusion {self.model.fusion} has no {absent[0]}; it has "
                f"{', '.join(self.model.parts)}"
            )
        if self.training.cache_features and "vision" in self.training.trains:
            raise ValueError(
                "training: cache_features needs a frozen vision tower, but training.trains contains vision"
            )
        if self.model.decoder_quantization != "none" and "decoder" in self.training.trains:
            raise ValueError(
                f"model.decoder_quantization {self.model.decoder_quantization} needs a frozen decoder: remove "
                "decoder from training.trains (its adapters may train)"
            )
        if self.queries.needs_codes and self.vocabulary.image_codes is None and self.init_from is None:
            raise ValueError(NO_CODES)
        if self.content.is_empty and self.init_from is None and self.model.decoder.free_row_dropout:
            raise ValueError(
                "model.decoder.free_row_dropout drops the free rows of tokens with content, but this model has "
                "no content; see content"
            )


WITHOUT_EFFECT = (
    "data.folder", "mesh", "model.attention", "model.unroll", "loader.threads", "loader.prefetch",
    "images.cache_megabytes", "loop.profile_steps", "loop.hang_seconds", "loop.wandb",
    "training.cache_features", "checkpoint.keep_latest",
)  # fmt: skip
"""Fields (with everything below them) that do not affect results, except for rounding."""
CHANGEABLE = (
    *WITHOUT_EFFECT, "model.remat", "training.accumulate", "training.elastic", "training.guard", "guard",
    "objective.chunk", "loop.log_every", "loop.validate_every", "loop.save_every",
)  # fmt: skip
"""Fields that may change when a run is continued, for example on other hardware; `loop.steps` may also grow."""


WHY_NOT = {
    "loop.steps": " (loop.steps can only be raised)",
    "loader.planner": " (this version plans rows differently; use the version of the project that started the run)",
}


def among(name: str, fields: tuple[str, ...]) -> bool:
    """Returns whether a dotted name is one of the fields or lies below one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def save_config(config: Any, path: Path) -> None:
    """Writes a configuration atomically: a partial file would prevent an interrupted run from being continued."""
    write_json(path, to_json(config))


def load_config(path: Path) -> ExperimentConfig:
    """Reads the configuration of an experiment; DataError if the file is missing or does not describe one."""
    return read_config(path, ExperimentConfig)


def read_config(path: Path, kind: type[C]) -> C:
    """Reads a configuration of the given class; raises the same errors as `load_config`."""
    try:
        saved = with_former_values(with_current_names(adapter(dict[str, Any]).validate_json(path.read_bytes())))
        config = adapter(kind).validate_json(json.dumps(saved))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} does not exist; is {path.parent} the folder of a run?") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place or 'the file'}: {first['msg']}") from error
    known = flat(to_json(config))
    if unknown := [name for name in flat(saved) if name not in known]:
        raise DataError(f"{path}: {unknown[0]} is not a field of this version; use the version that wrote the file")
    return config


def to_json(config: Any) -> dict[str, Any]:
    """Returns a configuration as nested dicts of JSON values."""
    return adapter(type(config)).dump_python(config, mode="json")


def settings(config: ExperimentConfig) -> dict[str, Any]:
    """Returns every field that affects results, by its dotted name."""
    return {name: value for name, value in flat(to_json(config)).items() if not among(name, WITHOUT_EFFECT)}


def differences(old: C, new: C) -> list[str]:
    """Returns `field: old, now new` for each field that differs although it must not change when a run is continued."""
    return [
        f"{name}: {before}, now {after}{WHY_NOT.get(name, '')}"
        for name, (before, after) in _changes(old, new).items()
        if not among(name, CHANGEABLE) and not (name == "loop.steps" and after > before)
    ]


def refuse_changes(old: C, new: C, folder: Path) -> None:
    """Raises DataError unless the run in a folder can be continued with another configuration."""
    changed = differences(old, new)
    if changed:
        raise DataError(
            f"{folder} contains a run of another configuration "
            f"({'; '.join(changed[:3])}{' …' if len(changed) > 3 else ''}); name another folder to start a new run"
        )


def note_changes(old: Any, new: Any, path: Path) -> None:
    """Replaces the saved configuration of a run by the one it is continued with, and prints the changes."""
    for name, (before, after) in _changes(old, new).items():
        print(f"{name}: {before}, now {after}")
        if name == "loop.steps":
            optimizer = new.optimizer
            rate = optimizer.final * optimizer.learning_rate
            print(f"the learning rate now falls from {optimizer.learning_rate:g} to {rate:g} at step {after}")
    if _changes(old, new):
        save_config(new, path)


def _changes(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Returns (old, new) of each field that differs."""
    before, after = flat(to_json(old)), flat(to_json(new))
    pairs = {name: (before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested fields by their dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves
