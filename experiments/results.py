"""What an evaluation found, in one form that tables, pages and tests read."""

from __future__ import annotations

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
    """All models at one task."""

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
    """One user's question and the model's answer, items by index into the catalogue."""

    user: str
    history: tuple[int, ...]
    target: int
    rank: float
    top: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ImageSample:
    """What one user asked to see and what was generated; items by index into the catalogue, images by the names of
    PNG files, relative to the folder of the evaluation.

    Attributes:
      reconstruction: the wanted item's image as its codes give it back, the best that could be generated.
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
    """What a reader may want to know of the run: parameters, seed, data, machine."""
    images: tuple[ImageSample, ...] = ()
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why a task, or a baseline, is in no table."""


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dataclasses.asdict(evaluation))


def load_evaluation(path: Path) -> Evaluation:
    """
    Raises:
      DataError: the file is missing or is no evaluation.
    """
    try:
        return pydantic.TypeAdapter(Evaluation).validate_json(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.stem for other in path.parent.glob("*.json"))
        there = f", or name another --split: {', '.join(others)}" if others else ""
        raise DataError(f"{path} does not exist: run `unimp evaluate` on this run first{there}") from error
    except pydantic.ValidationError as error:
        raise DataError(f"{path} is not an evaluation: {error.errors()[0]['msg']}") from error
