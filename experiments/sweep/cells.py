"""A cell of a sweep: one configuration, trained once in a folder of its own and then evaluated."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.atomic import write_json
from experiments.config import ExperimentConfig, settings, to_json
from experiments.evals.config import EvaluationConfig
from experiments.lock import locked
from experiments.presets import PRESETS
from experiments.sweep.changes import options
from experiments.sweep.job import read_json

CODES = "item_codes.parquet"


@dataclasses.dataclass(frozen=True)
class SweepCell:
    """What is trained and evaluated in one folder.

    Attributes:
      ablation: the name of the ablation, or the number of the trial.
      config: the configuration of the training, without what depends on other cells.
      starts_from: the cell whose model it is initialised from.
      ids_of: the cell whose model makes its semantic ids.
      evaluation: None for a trial and for a stage of other cells, which are not evaluated.
    """

    name: str
    preset: str
    ablation: str
    seed: int
    description: str
    config: ExperimentConfig
    starts_from: str | None = None
    ids_of: str | None = None
    evaluation: EvaluationConfig | None = None

    @property
    def needs(self) -> list[str]:
        """The cells that must be finished before."""
        return [name for name in (self.starts_from, self.ids_of) if name is not None]

    def experiment(self, folder: Path) -> ExperimentConfig:
        """Returns the configuration that is trained in the sweep's `folder`."""
        config = self.config
        if self.starts_from is not None:
            config = dataclasses.replace(config, init_from=folder / self.starts_from)
        if self.ids_of is not None:
            vocabulary = dataclasses.replace(config.vocabulary, item_codes=folder / self.name / CODES)
            config = dataclasses.replace(config, vocabulary=vocabulary)
        return config

    def commands(self, folder: Path) -> list[tuple[list[str], str]]:
        """Returns the arguments of each `unimp` command in order, with the file that it leaves in the cell's folder."""
        own, config = folder / self.name, self.experiment(folder)
        commands: list[tuple[list[str], str]] = []
        if self.ids_of is not None:
            commands.append((["ids", str(folder / self.ids_of), str(own / CODES), "--checkpoint", "latest"], CODES))
        train = ["train", self.preset, "--folder", str(own), *options(PRESETS[self.preset], config)]
        commands.append((train, f"checkpoints/{config.loop.steps}"))
        if self.evaluation is not None:
            evaluate = ["evaluate", str(own), *options(EvaluationConfig(), self.evaluation)]
            commands.append((evaluate, f"evaluation/{self.evaluation.split}.json"))
        return commands

    @property
    def hash(self) -> str:
        """Hash of everything that affects the cell's results, independent of the sweep's folder."""
        text = json.dumps(
            [settings(self.config), self.needs, self.evaluation and to_json(self.evaluation)], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def described(self, sweep: str) -> dict[str, Any]:
        """Returns what the report reads about the cell."""
        names = {"sweep": sweep, "base": self.preset, "ablation": self.ablation, "seed": self.seed}
        return {**names, "description": self.description}


def write_cells(folder: Path, cells: Sequence[SweepCell]) -> None:
    """Writes each cell's `cell.json`, and adds those that are evaluated to `sweep.json`; ValueError if a folder holds a
    cell of another configuration."""
    sweep = folder.absolute().name
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path = folder / cell.name / "cell.json"
        if (read_json(path) or {}).get("hash", cell.hash) != cell.hash:
            raise ValueError(
                f"{path.parent} contains a cell of another configuration (base, options, data or evaluation "
                "differ); use the same ones, or name another --folder"
            )
        commands = [
            {"words": [sys.executable, "-m", "experiments.cli", *words], "leaves": leaves}
            for words, leaves in cell.commands(folder)
        ]
        path.parent.mkdir(exist_ok=True)
        described = {**cell.described(sweep), "needs": cell.needs, "hash": cell.hash, "commands": commands}
        write_json(path, described, shared=True)
    with locked(folder / "sweep.lock", waits=True):
        new = {cell.name: cell.described(sweep) for cell in cells if cell.evaluation is not None}
        listed = read_json(folder / "sweep.json") or {"cells": []}
        kept = [one for one in listed["cells"] if one["folder"] not in new]
        added = [{"folder": name, **described} for name, described in new.items()]
        if added:
            write_json(folder / "sweep.json", {"sweep": sweep, "cells": kept + added})
