"""What a run's memory is: which counts of training stand beside the model in which task, and how much they say.

`unimp evaluate` chooses it on validation users (`experiments.evals.recommender`, `experiments.evals.rating`), and
leaves `memory.json` in the folder of the run, from which `unimp generate` answers. The counts themselves are made anew
from the records.
"""

from __future__ import annotations

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
        raise ValueError(f"share {share}: at least 0 and below 1 is right")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of which items followed, or were met with, those of a history; one of the two kinds is given."""

    share: float
    """How much of the pool is theirs."""
    calibration: Calibration
    """From their scores to probabilities."""
    item_knn: ItemKNNConfig | None = None
    markov: MarkovConfig | None = None

    def __post_init__(self) -> None:
        check_share(self.share)
        if (self.item_knn is None) == (self.markov is None):
            raise ValueError("counts are one of item_knn and markov")

    @property
    def described(self) -> str:
        return f"{ItemKNN.name if self.markov is None else Markov.name}, a share of {self.share:g}"


@dataclasses.dataclass(frozen=True)
class ItemMemory:
    """What is pooled with the model's probabilities; what is left of the shares is the model's."""

    counts: tuple[Counts, ...] = ()
    """None where the model alone validates best."""
    pool: Pool = "linear"
    """Whether probabilities are added up by their shares, or multiplied to the power of them."""

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
    """Of the expected rating, how much is the memory's; the rest is the model's."""
    factorisation: FactorisationConfig

    def __post_init__(self) -> None:
        check_share(self.share)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What stands beside a model; nothing where the model answers alone."""

    items: Mapping[str, ItemMemory] = dataclasses.field(default_factory=dict)
    """By the tasks that are answered by how probable each item is to come next."""
    ratings: RatingMemory | None = None


def save_memory(folder: Path, memory: Memory, tasks: Collection[str]) -> None:
    """Saves what was chosen for some tasks; that of others stays as it was chosen before."""
    before = read_memory(folder)
    items = {task: one for task, one in before.items.items() if task not in tasks} | dict(memory.items)
    saved = Memory(items, memory.ratings if "rating" in tasks else before.ratings)
    write_json(folder / FILE, to_json(saved), shared=True)


def read_memory(folder: Path) -> Memory:
    """That of a run; an empty one where it was not evaluated.

    Raises:
      DataError: the file does not describe a memory.
    """
    if not (folder / FILE).exists():
        return Memory()
    try:
        return read_config(folder / FILE, Memory)
    except DataError as error:
        raise DataError(f"{error}; delete it, and `unimp evaluate` makes it anew") from error
