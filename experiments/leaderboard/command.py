"""`unimp leaderboard`: trains and evaluates every missing cell, and writes the standings."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError
from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_model import SASRecModelConfig
from experiments.config import ExperimentConfig
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_run
from experiments.leaderboard.board import BenchmarkResult, page, read_board, standings, write_board
from experiments.presets import PRESETS
from experiments.report.cost import training_cost
from experiments.report.runs import EvaluatedRun, read_run
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
    """Trains and evaluates one cell, or continues it, unless it is finished; returns whether anything was to be
    done."""
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


def leaderboard_command(
    folder: tyro.conf.Positional[Path],
    config: Annotated[LeaderboardConfig, tyro.conf.arg(name="")],
    out: Path = Path("LEADERBOARD.md"),
    read_only: bool = False,
) -> None:
    """Train one model per data set, compare it with every rival, and write a leaderboard.

    Results of other data sets that the page already has, from another folder or machine, are kept.

    Args:
      folder: folder for the runs, one per data set and seed; the same command continues an interrupted leaderboard.
      out: the page; a JSON file with the same content is written beside it.
      read_only: train nothing, and use the existing runs.
    """
    for seed in () if read_only else config.seeds:  # every data set once before any is repeated
        for name in config.benchmarks:
            cell = folder / name / f"seed-{seed}"
            print(f"{name}, seed {seed}: {cell}", flush=True)
            run_cell(cell, BENCHMARKS[name], seed, config.data)
            write_page(folder, config, out)  # so that an interrupted leaderboard shows its results so far
    write_page(folder, config, out)


def write_page(folder: Path, config: LeaderboardConfig, out: Path) -> None:
    """Writes the page and the JSON file of the evaluated cells; DataError if nothing is evaluated yet."""
    saved = out.with_suffix(".json")
    board = read_board(saved)
    for name in config.benchmarks:
        if found := evaluated(folder / name, config.seeds):
            runs, title = list(found.values()), BENCHMARKS[name].title
            seconds = tuple(training_cost(run.config, run.log)[1] for run in runs)
            board[title] = BenchmarkResult(tuple(found), seconds, tuple(standings(title, runs)))
    if not board:
        raise DataError(f"{folder} has no evaluated run; without --read-only the leaderboard trains the runs")
    board = {one.title: board[one.title] for one in BENCHMARKS.values() if one.title in board}
    with atomic_file(out) as partial:
        partial.write_text(page(board), encoding="utf-8")
    write_board(saved, board)


def evaluated(folder: Path, seeds: tuple[int, ...]) -> dict[int, EvaluatedRun]:
    """Returns the evaluated cells of a data set, by seed."""
    paths = {seed: folder / f"seed-{seed}" for seed in seeds}
    return {
        seed: read_run(path, "test") for seed, path in paths.items() if (path / "evaluation" / "test.json").exists()
    }
