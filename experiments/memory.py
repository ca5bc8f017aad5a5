"""A run's memory: the training counts that are combined with the model in each task, and their weights.

`unimp evaluate` chooses it on validation users (`experiments.evals.recommender`, `experiments.evals.rating`) and writes
`memory.json` into the run folder, which `unimp generate` reads. The counts themselves are recomputed from the records.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from data_pipelines.atomic import write_json
from data_pipelines.errors import DataError
from experiments.baselines.calibration import Calibration
from experiments.baselines.item_knn import ItemKNN, ItemKNNConfig
from experiments.baselines.markov import Markov, MarkovConfig
from experiments.baselines.ratings import FactorisationConfig
from experiments.config import read_config, to_json

FILE = "memory.json"
Pool = Literal["linear", "logarithmic"]


def check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"share {share} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of the items that followed, or co-occurred with, those of a history: exactly one of the two kinds."""

    share: float
    """Weight of these counts in the pool."""
    calibration: Calibration
    """Maps their scores to probabilities."""
    item_knn: ItemKNNConfig | None = None
    markov: MarkovConfig | None = None

    def __post_init__(self) -> None:
        check_share(self.share)
        if (self.item_knn is None) == (self.markov is None):
            raise ValueError("exactly one of item_knn and markov must be given")

    @property
    def described(self) -> str:
        return f"{ItemKNN.name if self.markov is None else Markov.name}, a share of {self.share:g}"


@dataclasses.dataclass(frozen=True)
class ItemMemory:
    """Counts that are pooled with the model's probabilities; the model's weight is 1 minus the sum of their shares."""

    counts: tuple[Counts, ...] = ()
    """Empty if the model alone performs best in validation."""
    pool: Pool = "linear"
    """How probabilities are combined: as a sum weighted by the shares, or as a product with the shares as exponents."""

    def __post_init__(self) -> None:
        check_share(sum(one.share for one in self.counts))

    @property
    def described(self) -> str:
        kinds = "; ".join(one.described for one in self.counts)
        return f"{kinds} ({self.pool} pool)" if kinds else "none"


@dataclasses.dataclass(frozen=True)
class RatingMemory:
    """Biases (and factors) of users and items."""

    share: float
    """Weight of the memory in the expected rating; the rest is the model's."""
    factorisation: FactorisationConfig

    def __post_init__(self) -> None:
        check_share(self.share)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What is combined with a model's answers; empty if the model answers alone."""

    items: Mapping[str, ItemMemory] = dataclasses.field(default_factory=dict)
    """By task, for the tasks that are answered by the probability of each item to come next."""
    ratings: RatingMemory | None = None


def save_memory(folder: Path, memory: Memory, tasks: Collection[str]) -> None:
    """Saves the memory chosen for some tasks; that of other tasks is kept, unless the file cannot be read."""
    before = Memory()
    with contextlib.suppress(DataError):  # a damaged file, or one of an earlier version, is replaced
        before = read_memory(folder)
    items = {task: one for task, one in before.items.items() if task not in tasks} | dict(memory.items)
    saved = Memory(items, memory.ratings if "rating" in tasks else before.ratings)
    write_json(folder / FILE, to_json(saved), shared=True)


def read_memory(folder: Path) -> Memory:
    """Returns the memory of a run, empty if the run was not evaluated; DataError if the file is damaged."""
    if not (folder / FILE).exists():
        return Memory()
    try:
        return read_config(folder / FILE, Memory)
    except DataError as error:
        raise DataError(f"{error}; delete it, and `unimp evaluate` will write it again") from error
