"""The cells of the leaderboard: a preset per data set, with rivals that train for a fixed time each."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_model import SASRecModelConfig
from experiments.config import ExperimentConfig
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_run
from experiments.presets import PRESETS
from experiments.train import train_run
from unimp_jax.decoding import BeamConfig


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set, the preset that is trained on it, and the training of its rivals.

    Attributes:
      rivals: configuration and training time of each trained rival, chosen on validation with seed 0.
    """

    title: str
    source: str
    preset: str
    rivals: SASRecConfig


SPARSE = SASRecModelConfig(max_length=64, dropout=0.3)
"""For histories of a few items in a catalogue of many thousands."""
REGULARISED = SASRecModelConfig(max_length=64, dropout=0.5)
"""For a few thousand such histories, which are memorised within minutes."""

BENCHMARKS = {
    "movielens-small": Benchmark("MovieLens small", "movielens_small", "tiny", SASRecConfig(seconds=240)),
    "movielens-1m": Benchmark("MovieLens 1M", "movielens_1m", "small", SASRecConfig(seconds=1800)),
    "hm-products": Benchmark(
        "H&M products",
        "hm-products",
        "fashion",
        SASRecConfig(REGULARISED, seconds=300, learning_rate=1e-3, weight_decay=0.3),
    ),
    "beauty": Benchmark("Beauty", "beauty", "beauty", SASRecConfig(SPARSE, seconds=900, batch_size=32)),
    "sports": Benchmark("Sports", "sports", "beauty", SASRecConfig(SPARSE, seconds=900, batch_size=32)),
    "instruments": Benchmark(
        "Musical Instruments", "amazon_instruments_2014", "reviews", SASRecConfig(SPARSE, seconds=300, batch_size=32)
    ),
}


@dataclasses.dataclass(frozen=True)
class LeaderboardConfig:
    """The cells, and the folder of their data."""

    benchmarks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--contests"])] = tuple(BENCHMARKS)
    """Names of the data sets; --contests is the former name of the option."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of parameters, data order and rivals."""
    data: Path = Path("data")
    """Folder of the prepared records."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.benchmarks if name not in BENCHMARKS]
        if unknown or not self.benchmarks:
            raise ValueError(f"benchmarks {' '.join(unknown) or '(none)'}; give one or more of {', '.join(BENCHMARKS)}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: give one or more different seeds of at least 0")


def experiment_of(benchmark: Benchmark, seed: int, data: Path) -> ExperimentConfig:
    """Returns the configuration of one cell."""
    preset = PRESETS[benchmark.preset]
    return dataclasses.replace(
        preset, data=dataclasses.replace(preset.data, source=benchmark.source, folder=data), seed=seed
    )


def run_cell(folder: Path, benchmark: Benchmark, seed: int, data: Path) -> bool:
    """Trains and evaluates one cell, or continues it, unless it is finished; returns whether anything was left to
    do."""
    if (folder / "evaluation" / "test.json").exists():
        return False
    train_run(experiment_of(benchmark, seed, data), folder)
    rivals = dataclasses.replace(benchmark.rivals, seed=seed, clock="processor")
    evaluate_run(
        folder,
        EvaluationConfig(
            checkpoint="latest",  # the best one is chosen for recommendation alone, and is too early for other tasks
            rivals=("sasrec", "esasrec", "hstu"),
            sasrec_config=rivals,
            reviews=BeamConfig(beams=1, new_tokens=96),
        ),
    )
    return True
