"""`unimp leaderboard`: trains and evaluates every missing cell, and writes the standings."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.atomic import atomic_file, write_json
from data_pipelines.errors import DataError
from experiments.leaderboard.board import Standing, standings
from experiments.leaderboard.cells import CONTESTS, LeaderboardConfig, run_cell
from experiments.leaderboard.page import page
from experiments.report.cost import training_cost
from experiments.report.runs import EvaluatedRun, read_run


def leaderboard_command(
    folder: tyro.conf.Positional[Path],
    config: Annotated[LeaderboardConfig, tyro.conf.arg(name="")],
    out: Path = Path("LEADERBOARD.md"),
    read_only: bool = False,
) -> None:
    """Train one model on every data set, beside every rival, and write who is ahead.

    Args:
      folder: folder for the runs, one per data set and seed; the same command continues an interrupted leaderboard.
      out: the page; a JSON file with the same content is written beside it.
      read_only: train nothing, and use the existing runs.
    """
    for seed in () if read_only else config.seeds:  # every data set once before any is repeated
        for name in config.contests:
            cell = folder / name / f"seed-{seed}"
            print(f"{name}, seed {seed}: {cell}", flush=True)
            run_cell(cell, CONTESTS[name], seed, config.data)
            write_page(folder, config, out)  # so that an interrupted leaderboard shows its results so far
    write_page(folder, config, out)


def write_page(folder: Path, config: LeaderboardConfig, out: Path) -> None:
    """Writes the page and the JSON file of the evaluated cells.

    Raises:
      DataError: nothing is evaluated yet.
    """
    found: list[Standing] = []
    seconds: dict[str, list[float]] = {}
    for name in config.contests:
        runs = evaluated(folder / name, config.seeds)
        if runs:
            title = CONTESTS[name].title
            found += standings(title, runs)
            seconds[title] = [training_cost(run.config, run.log)[1] for run in runs]
    if not found:
        raise DataError(f"{folder} holds no evaluated run: without --read-only the leaderboard trains them")
    command = shlex.join(["unimp", *sys.argv[1:]])
    with atomic_file(out) as partial:
        partial.write_text(page(found, seconds, command, config.seeds), encoding="utf-8")
    told = [dataclasses.asdict(one) | {"verdict": one.verdict} for one in found]
    write_json(out.with_suffix(".json"), {"seconds": seconds, "standings": told})


def evaluated(folder: Path, seeds: tuple[int, ...]) -> list[EvaluatedRun]:
    """Returns the evaluated cells of a data set."""
    paths = [folder / f"seed-{seed}" for seed in seeds]
    return [read_run(path, "test") for path in paths if (path / "evaluation" / "test.json").exists()]
