"""Folders in, runs in groups out: the seeds of an experiment are a group; what cannot be shown is listed, and why."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from data_pipelines.errors import DataError
from experiments.config import ExperimentConfig, load_config, settings
from experiments.results import Evaluation, load_evaluation
from unimp_jax.training.log import read_log


@dataclasses.dataclass(frozen=True)
class Cell:
    """`cell.json`: which cell of a sweep a run is."""

    sweep: str
    base: str
    ablation: str
    seed: int
    description: str = ""


@dataclasses.dataclass(frozen=True)
class Failure:
    """`failed.json`: why a cell of a sweep failed, and the last lines that it printed."""

    reason: str
    end: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that was evaluated, read from its folder."""

    folder: Path
    cell: Cell | None
    config: ExperimentConfig
    evaluation: Evaluation
    log: Sequence[dict[str, Any]]
    starts: Sequence[dict[str, str]]
    """How it was started, each time otherwise: `experiments.starts`."""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """By dotted name, those on which results depend."""
        return settings(self.config)

    @functools.cached_property
    def answers(self) -> dict[str, pa.Table]:
        """By task; a row a question."""
        stem = self.folder / "evaluation" / self.evaluation.split
        return {table.task: pq.read_table(f"{stem}-{table.task}.parquet") for table in self.evaluation.tables}


@dataclasses.dataclass(frozen=True)
class Missing:
    """A run that is not in the tables, or what an evaluation left out."""

    name: str
    why: str


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seed; the number keeps its colour on the page."""

    name: str
    description: str
    runs: tuple[Run, ...]
    number: int = 0

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @property
    def uneven(self) -> list[str]:
        """Settings beside the seed in which runs differ, such as a start of each seed's own."""
        all_settings = [run.settings for run in self.runs]
        names = dict.fromkeys(name for one in all_settings for name in one)
        return [name for name in names if name != "seed" and len({str(one.get(name)) for one in all_settings}) > 1]


def gather(folders: Iterable[Path], split: str) -> tuple[list[list[Group]], list[Missing]]:
    """(for each source, in the order met, its groups in the order met; what is left out).

    The first group of a source is what others are compared with: that of the ablation "base", or else the first met.

    Args:
      folders: of runs, of sweeps (`sweep.json` gives the order), or folders of these.

    Raises:
      DataError: a folder holds no run, or no run is evaluated.
    """
    found = dict.fromkeys(path.resolve() for folder in folders for path in runs_in(folder))
    read = [read_run(folder, split) for folder in found]
    missing = [run for run in read if isinstance(run, Missing)]
    sources: dict[str, dict[Any, list[Run]]] = {}
    for run in read:
        if isinstance(run, Missing):
            continue
        same = sources.setdefault(run.config.data.source, {}).setdefault(identity(run), [])
        twin = next((other for other in same if other.config.seed == run.config.seed), None)
        if twin:
            missing.append(
                Missing(str(run.folder), f"the same experiment and seed as {twin.folder}: no repetition of it")
            )
        else:
            same.append(run)
    told: dict[tuple[str, str], list[Run]] = {}
    for run in (one for one in read if isinstance(one, Run)):
        for what, why in run.evaluation.left_out.items():
            told.setdefault((what, why), []).append(run)
    missing += [Missing(f"{what}, of {runs[0].folder}{others(runs)}", why) for (what, why), runs in told.items()]
    if not sources:
        raise DataError(
            f"none of {len(read)} runs is evaluated on {split}; the first, {missing[0].name}: {missing[0].why}"
        )
    return [name_groups(sorted(groups.values(), key=is_varied)) for groups in sources.values()], missing


def others(runs: Sequence[Run]) -> str:
    return f" and {len(runs) - 1} more" if len(runs) > 1 else ""


def runs_in(folder: Path) -> list[Path]:
    """
    Raises:
      DataError: there are none.
    """
    if (folder / "sweep.json").exists():
        return cells_of(folder / "sweep.json")
    if (folder / "config.json").exists() or (folder / "cell.json").exists():
        return [folder]
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    runs = [run for path in inside if holds_runs(path) for run in runs_in(path)]
    if not runs:
        raise DataError(
            f"{folder / 'config.json'} does not exist: is {folder} the folder of a run? That of a sweep is right too"
        )
    return runs


def holds_runs(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("sweep.json", "config.json", "cell.json"))


def cells_of(path: Path) -> list[Path]:
    """The folders of a sweep's cells, whether or not they were begun."""
    try:
        return [path.parent / cell["folder"] for cell in json.loads(path.read_bytes())["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} lists no cells: {error!r}") from error


def read_run(folder: Path, split: str) -> Run | Missing:
    """The run, or why it cannot be compared."""
    try:
        failed = read_json(folder / "failed.json", Failure)
        if failed:
            return Missing(str(folder), "; ".join([f"failed: {failed.reason}", *failed.end[-1:]]))
        if not (folder / "config.json").exists():
            return Missing(str(folder), "not begun")
        log = read_log(folder / "metrics.jsonl")
        config = load_config(folder / "config.json")
        path = folder / "evaluation" / f"{split}.json"
        if not path.exists():
            done = max((line["step"] for line in log), default=0)
            if done < config.loop.steps:
                return Missing(str(folder), f"unfinished: step {done:,} of {config.loop.steps:,}")
            return Missing(str(folder), f"trained, not evaluated on {split}")
        evaluation = load_evaluation(path)
        for table in evaluation.tables:
            answers = path.with_name(f"{split}-{table.task}.parquet")
            if not is_of_answers(answers):
                return Missing(
                    str(folder), f"{answers.name} is not there, or damaged: run `unimp evaluate` on this run again"
                )
        cell = read_json(folder / "cell.json", Cell)
        starts = read_json(folder / "started.json", list[dict[str, str]])
    except (DataError, OSError) as error:
        return Missing(str(folder), str(error))
    return Run(folder, cell, config, evaluation, log, starts or [])


def is_of_answers(path: Path) -> bool:
    """Whether a file is there that says who was asked, and about what."""
    try:
        return {"user", "item"} <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return False


def read_json(path: Path, kind: Any) -> Any:
    """What the file holds, or None where there is none."""
    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def identity(run: Run) -> Any:
    """What the seeds of one experiment share."""
    if run.cell:
        return run.cell.sweep, run.cell.base, run.cell.ablation
    return json.dumps({name: value for name, value in run.settings.items() if name != "seed"}, sort_keys=True)


def is_varied(runs: Sequence[Run]) -> bool:
    return runs[0].cell is None or runs[0].cell.ablation != "base"


def name_groups(groups: Sequence[Sequence[Run]]) -> list[Group]:
    """By ablation, or by folder; by more where names would be the same."""
    short = [name_of(runs) for runs in groups]
    named = []
    for number, (name, runs) in enumerate(zip(short, groups, strict=True)):
        cell = runs[0].cell
        if short.count(name) > 1:
            name = f"{cell.sweep} · {name}" if cell else "/".join(runs[0].folder.parts[-2:])
        named.append(Group(name, cell.description if cell else "", tuple(sorted_by_seed(runs)), number))
    return named


def name_of(runs: Sequence[Run]) -> str:
    """Of folders `small-0`, `small-1`: `small`."""
    if runs[0].cell:
        return runs[0].cell.ablation
    names = [run.folder.name for run in runs]
    stems = {re.sub(r"[-_. ]*(seed)?[-_. ]*\d+$", "", name) for name in names}
    return stems.pop() or names[0] if len(names) > 1 and len(stems) == 1 else names[0]


def sorted_by_seed(runs: Sequence[Run]) -> list[Run]:
    return [runs[number] for number in np.argsort([run.config.seed for run in runs], kind="stable")]
