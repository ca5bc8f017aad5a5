"""What a run's memory is: which counts of training stand beside the model, and how much they say.

`unimp evaluate` chooses it on validation users (`experiments.evals.recommender`), and leaves `memory.json` in the
folder of the run, from which `unimp generate` answers. The counts themselves are made anew from the records.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.atomic import write_json
from experiments.baselines.calibration import Calibration
from experiments.baselines.item_knn import ItemKNN, ItemKNNConfig
from experiments.baselines.markov import Markov, MarkovConfig
from experiments.config import read_config, to_json

FILE = "memory.json"


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Counts of which items followed, or were met with, those of a history; one of the two kinds is given."""

    share: float
    """Of the probability, how much is the memory's; the rest is the model's."""
    calibration: Calibration
    """From the memory's scores to probabilities."""
    item_knn: ItemKNNConfig | None = None
    markov: MarkovConfig | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share {self.share}: above 0 and below 1 is right")
        if (self.item_knn is None) == (self.markov is None):
            raise ValueError("a memory is one of item_knn and markov")


def memory_of(ranker: ItemKNN | Markov, share: float, calibration: Calibration) -> MemoryConfig:
    if isinstance(ranker, ItemKNN):
        return MemoryConfig(share, calibration, item_knn=ranker.config)
    return MemoryConfig(share, calibration, markov=ranker.config)


def save_memory(folder: Path, memory: MemoryConfig) -> None:
    write_json(folder / FILE, to_json(memory), shared=True)


def read_memory(folder: Path) -> MemoryConfig | None:
    """That of a run; None where it was not evaluated.

    Raises:
      DataError: the file does not describe a memory.
    """
    return read_config(folder / FILE, MemoryConfig) if (folder / FILE).exists() else None
