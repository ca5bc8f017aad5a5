"""What the leaderboard consists of: a preset for each data set, and as much time for each rival as the preset takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_model import SASRecModelConfig
from experiments.config import ExperimentConfig
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_run
from experiments.presets import PRESETS
from experiments.train import train_run
from unimp_jax.decoding import BeamConfig


@dataclasses.dataclass(frozen=True)
class Contest:
    """A data set, the preset that is trained on it, and the allowance of its rivals.

    Attributes:
      title: what tables call the data set.
      source: of `unimp prepare`.
      preset: all tasks in one model.
      rivals: how each trained rival is trained, and for how many seconds; chosen on validation of seed 0.
    """

    title: str
    source: str
    preset: str
    rivals: SASRecConfig


SPARSE = SASRecModelConfig(max_length=64, dropout=0.3)
"""For histories of a few items among many thousands."""

CONTESTS = {
    "movielens-small": Contest("MovieLens small", "movielens_small", "tiny", SASRecConfig(seconds=240)),
    "movielens-1m": Contest("MovieLens 1M", "movielens_1m", "small", SASRecConfig(seconds=1800)),
    "hm-products": Contest("H&M products", "hm-products", "fashion", SASRecConfig(seconds=420)),
    "beauty": Contest("Beauty", "beauty", "beauty", SASRecConfig(SPARSE, seconds=900, batch_size=32)),
    "sports": Contest("Sports", "sports", "beauty", SASRecConfig(SPARSE, seconds=900, batch_size=32)),
    "instruments": Contest(
        "Musical Instruments", "amazon_instruments_2014", "reviews", SASRecConfig(SPARSE, seconds=300, batch_size=32)
    ),
}


@dataclasses.dataclass(frozen=True)
class LeaderboardConfig:
    """Which cells there are, and where they are kept."""

    contests: tuple[str, ...] = tuple(CONTESTS)
    """Data sets by name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of parameters, data order and rivals."""
    data: Path = Path("data")
    """Where the prepared records are."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.contests if name not in CONTESTS]
        if unknown or not self.contests:
            raise ValueError(f"contests {' '.join(unknown) or 'of nothing'}: one or more of {', '.join(CONTESTS)}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: one or more, all different, of 0 or more")


def experiment_of(contest: Contest, seed: int, data: Path) -> ExperimentConfig:
    """The configuration of one cell."""
    preset = PRESETS[contest.preset]
    return dataclasses.replace(
        preset, data=dataclasses.replace(preset.data, source=contest.source, folder=data), seed=seed
    )


def run_cell(folder: Path, contest: Contest, seed: int, data: Path) -> bool:
    """Trains and evaluates one cell, or goes on where it was interrupted.

    Returns:
      Whether there was anything left to do.

    Raises:
      DataError: the source is not prepared, or the folder holds another experiment.
    """
    if (folder / "evaluation" / "test.json").exists():
        return False
    train_run(experiment_of(contest, seed, data), folder)
    rivals = dataclasses.replace(contest.rivals, seed=seed)
    evaluate_run(
        folder,
        EvaluationConfig(
            checkpoint="latest",  # the best at recommendation alone, by validation, is earlier than that of other tasks
            rivals=("sasrec", "esasrec", "hstu"),
            sasrec_config=rivals,
            reviews=BeamConfig(beams=1, new_tokens=96),
        ),
    )
    return True
