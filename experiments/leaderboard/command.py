"""`unimp leaderboard`: trains and evaluates every missing cell, and writes the standings."""

from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError
from experiments.leaderboard.board import BenchmarkResult, read_board, standings, write_board
from experiments.leaderboard.cells import BENCHMARKS, LeaderboardConfig, run_cell
from experiments.leaderboard.page import page
from experiments.report.cost import training_cost
from experiments.report.runs import EvaluatedRun, read_run


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
