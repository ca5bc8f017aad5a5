"""The results of an evaluation, in one form for tables, pages and tests."""

import dataclasses
from pathlib import Path
from typing import Any

import pydantic

from data_pipelines.atomic import write_json
from data_pipelines.errors import DataError
from unimp_jax.evaluation.bootstrap import Interval


@dataclasses.dataclass(frozen=True)
class Row:
    """One model's metrics by name: means over users with 95 % bootstrap intervals."""

    model: str
    metrics: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class TaskTable:
    """The results of all models for one task."""

    task: str
    users: int
    larger_is_better: bool
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError(f"the table of {self.task} has no rows")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One user's query and the model's answer; items are catalogue indices."""

    user: str
    history: tuple[int, ...]
    target: int
    rank: float
    top: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ImageSample:
    """What one user asked to see and the generated images; items are catalogue indices, images are names of PNG files
    relative to the evaluation folder.

    Attributes:
      reconstruction: the target item's image decoded from its codes, the best that could be generated.
    """

    user: str
    history: tuple[int, ...]
    query: str
    target: int
    reconstruction: str
    generated: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All tables of one run on one split."""

    source: str
    split: str
    step: int
    tables: tuple[TaskTable, ...]
    samples: tuple[Sample, ...]
    seconds: float = 0.0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a reader may want to know about the run: parameters, seed, data, machine."""
    images: tuple[ImageSample, ...] = ()
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why a task, or a baseline, is missing from the tables."""


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Writes the evaluation atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dataclasses.asdict(evaluation))


def load_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation; DataError if the file does not exist or is not an evaluation."""
    try:
        return pydantic.TypeAdapter(Evaluation).validate_json(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.stem for other in path.parent.glob("*.json"))
        hint = f", or choose another --split: {', '.join(others)}" if others else ""
        raise DataError(f"{path} does not exist; run `unimp evaluate` on this run first{hint}") from error
    except pydantic.ValidationError as error:
        raise DataError(f"{path} is not an evaluation: {error.errors()[0]['msg']}") from error
