"""Reads evaluated runs from their folders, and groups those that differ only in the seed."""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.errors import DataError
from data_pipelines.object_store import readable
from experiments.config import ExperimentConfig, load_config, settings
from experiments.results import Evaluation, load_evaluation
from experiments.sweep.job import read_json
from unimp_jax.training.log import read_log


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """A run that was evaluated, read from its folder.

    Attributes:
      starts: the entries written by `experiments.provenance`.
    """

    folder: Path
    cell: dict[str, Any] | None
    config: ExperimentConfig
    evaluation: Evaluation
    log: Sequence[dict[str, Any]]
    starts: Sequence[dict[str, str]]

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that affect results, by dotted name."""
        return settings(self.config)

    @functools.cached_property
    def answers(self) -> dict[str, pa.Table]:
        """The answers to each task, one row per query."""
        return {table.task: pq.read_table(readable(self.answers_path(table.task))) for table in self.evaluation.tables}

    def answers_path(self, task: str) -> Path:
        """Returns the path of the file with the answers to a task."""
        return self.folder / "evaluation" / f"{self.evaluation.split}-{task}.parquet"

    @property
    def experiment(self) -> Any:
        """Identifies the experiment: equal for runs that differ only in the seed."""
        if self.cell:
            return self.cell["sweep"], self.cell["base"], self.cell["ablation"]
        return json.dumps({name: value for name, value in self.settings.items() if name != "seed"}, sort_keys=True)


class LeftOut(NamedTuple):
    """A run that is missing in the tables, or a part of an evaluation that was not made, and the reason."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in their seed; `number` selects the group's colour on the page."""

    name: str
    description: str
    runs: tuple[EvaluatedRun, ...]
    number: int = 0

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @property
    def varying(self) -> list[str]:
        """Settings other than the seed in which the runs differ, for example a checkpoint that belongs to each seed."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        return [
            name for name in names if name != "seed" and len({str(run.settings.get(name)) for run in self.runs}) > 1
        ]


def changes(base: Group, group: Group) -> list[tuple[str, Any, Any]]:
    """Returns (name, the base's value, the group's value) of each setting in which a group differs from the base,
    without those that vary between seeds."""
    before, after = base.runs[0].settings, group.runs[0].settings
    ignored = {"seed", *group.varying, *base.varying}
    names = [name for name in dict.fromkeys([*before, *after]) if name not in ignored]
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def read_groups(folders: Iterable[Path], split: str) -> tuple[list[list[Group]], list[LeftOut]]:
    """Reads all runs below the folders and groups them by data source and experiment.

    Args:
      folders: folders of runs, of sweeps (in the order of `sweep.json`), or folders that contain these.

    Returns:
      For each source its groups, in the order in which they were found, and what is left out. The first group of a
      source is the base of all comparisons: the ablation "base", or else the first that was found.

    Raises:
      DataError: a folder holds no run, or no run is evaluated.
    """
    runs, left_out = [], []
    for path in dict.fromkeys(path.resolve() for folder in folders for path in run_folders(folder)):
        try:
            runs.append(read_run(path, split))
        except (ValueError, OSError) as error:
            left_out.append(LeftOut(str(path), str(error)))
    if not runs:
        first = left_out[0]
        raise DataError(
            f"none of the {len(left_out)} runs is evaluated on {split}; the first, {first.name}: {first.reason}"
        )
    sources: dict[str, dict[Any, dict[int, EvaluatedRun]]] = {}
    for run in runs:
        by_seed = sources.setdefault(run.config.data.source, {}).setdefault(run.experiment, {})
        same = by_seed.setdefault(run.config.seed, run)
        if same is not run:
            left_out.append(
                LeftOut(str(run.folder), f"the same experiment and seed as {same.folder}, so it is not a repetition")
            )
    return [name_groups(list(groups.values())) for groups in sources.values()], left_out + left_out_of(runs)


def run_folders(folder: Path) -> list[Path]:
    """Finds run folders: the folder itself, the cells of a sweep, or those of the folders inside; DataError if none."""
    sweep = folder / "sweep.json"
    if sweep.exists():
        try:
            return [folder / cell["folder"] for cell in json.loads(sweep.read_bytes())["cells"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{sweep} does not list cells: {error!r}") from error
    if (folder / "config.json").exists() or (folder / "cell.json").exists():
        return [folder]
    names = ("sweep.json", "config.json", "cell.json")
    inside = sorted({path.parent for name in names for path in folder.glob(f"*/{name}")})
    if not inside:
        raise DataError(f"{folder / 'config.json'} does not exist; is {folder} the folder of a run or of a sweep?")
    return [run for path in inside for run in run_folders(path)]


def read_run(folder: Path, split: str) -> EvaluatedRun:
    """Reads one run; DataError if it failed, is unfinished or not evaluated on the split, or a file is damaged."""
    failure = read_json(folder / "failed.json")
    if failure:
        raise DataError("; ".join([f"failed: {failure['reason']}", *failure["end"][-1:]]))
    if not (folder / "config.json").exists():
        raise DataError("not started")
    log, config = read_log(folder / "metrics.jsonl"), load_config(folder / "config.json")
    path = folder / "evaluation" / f"{split}.json"
    if not path.exists():
        step = max((line["step"] for line in log), default=0)
        if step < config.loop.steps:
            raise DataError(f"unfinished: step {step:,} of {config.loop.steps:,}")
        raise DataError(f"trained, not evaluated on {split}")
    cell, starts = read_json(folder / "cell.json"), read_json(folder / "started.json")
    run = EvaluatedRun(folder, cell, config, load_evaluation(path), log, starts or [])
    for path in (run.answers_path(table.task) for table in run.evaluation.tables):
        with contextlib.suppress(pa.ArrowException, OSError):
            if {"user", "item"} <= set(pq.read_schema(readable(path)).names):
                continue
        raise DataError(f"{path.name} is missing or damaged; run `unimp evaluate` on this run again")
    return run


def left_out_of(runs: Sequence[EvaluatedRun]) -> list[LeftOut]:
    """Returns what the evaluations left out, merged over runs; for a single run, without its name."""
    found: dict[LeftOut, list[Path]] = {}
    for run in runs:
        for one in run.evaluation.left_out.items():
            found.setdefault(LeftOut(*one), []).append(run.folder)
    if len(runs) == 1:
        return list(found)
    more = {one: f" and {len(folders) - 1} more" if len(folders) > 1 else "" for one, folders in found.items()}
    return [LeftOut(f"{one.name}, of {found[one][0]}{more[one]}", one.reason) for one in found]


def name_groups(groups: Sequence[dict[int, EvaluatedRun]]) -> list[Group]:
    """Names groups of runs by their ablation or folder, and puts the base first; equal names are made longer."""
    ordered = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in groups]
    ordered.sort(key=lambda runs: runs[0].cell is None or runs[0].cell["ablation"] != "base")
    names = [name_of(runs) for runs in ordered]
    named = []
    for number, (name, (first, *others)) in enumerate(zip(names, ordered, strict=True)):
        if names.count(name) > 1:
            name = f"{first.cell['sweep']} · {name}" if first.cell else "/".join(first.folder.parts[-2:])
        named.append(Group(name, first.cell["description"] if first.cell else "", (first, *others), number))
    return named


def name_of(runs: Sequence[EvaluatedRun]) -> str:
    """Returns the ablation or the name of the folder; for the folders `small-0` and `small-1`, it is `small`."""
    if runs[0].cell:
        return runs[0].cell["ablation"]
    stems = {re.sub(r"[-_. ]*(seed)?[-_. ]*\d+$", "", run.folder.name) for run in runs}
    return stems.pop() or runs[0].folder.name if len(runs) > 1 and len(stems) == 1 else runs[0].folder.name
