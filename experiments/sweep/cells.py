"""A cell of a sweep: one configuration, trained once in a folder of its own, and measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from experiments.config import ExperimentConfig, settings
from experiments.evals.config import EvaluationConfig
from experiments.lock import locked
from experiments.presets import PRESETS
from experiments.sweep.changes import options
from experiments.sweep.files import read_json, write_json

CODES = "item_codes.parquet"


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is trained, and how it is told.

    Attributes:
      name: of its folder.
      base: the preset.
      ablation: what is changed of it; of a search, the trial.
      config: but for what comes from other cells.
      starts_from: the cell whose model it begins with.
      ids_of: the cell whose model names its items.
      evaluation: how it is measured; None: not at all, for it is a part of others.
    """

    name: str
    base: str
    ablation: str
    seed: int
    description: str
    config: ExperimentConfig
    starts_from: str | None = None
    ids_of: str | None = None
    evaluation: EvaluationConfig | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Cells that must be done before."""
        return tuple(name for name in (self.starts_from, self.ids_of) if name is not None)

    def experiment(self, folder: Path) -> ExperimentConfig:
        """What is trained, in the sweep's `folder`."""
        config = self.config
        if self.starts_from is not None:
            config = dataclasses.replace(config, start=folder / self.starts_from)
        if self.ids_of is not None:
            vocabulary = dataclasses.replace(config.vocabulary, item_codes=folder / self.name / CODES)
            config = dataclasses.replace(config, vocabulary=vocabulary)
        return config

    def commands(self, folder: Path) -> list[tuple[list[str], str]]:
        """What follows `unimp`, one command after the other, and what each leaves in the cell's folder."""
        own = folder / self.name
        commands: list[tuple[list[str], str]] = []
        if self.ids_of is not None:
            commands.append((["ids", str(folder / self.ids_of), str(own / CODES), "--checkpoint", "latest"], CODES))
        config = self.experiment(folder)
        train = ["train", self.base, "--folder", str(own), *options(PRESETS[self.base], config)]
        commands.append((train, f"checkpoints/{config.loop.steps}"))
        if self.evaluation is not None:
            evaluate = ["evaluate", str(own), *options(EvaluationConfig(), self.evaluation)]
            commands.append((evaluate, f"evaluation/{self.evaluation.split}.json"))
        return commands

    @property
    def fingerprint(self) -> str:
        """Of all that its results depend on, wherever the sweep's folder is."""
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(EvaluationConfig)
        evaluation = self.evaluation and adapter.dump_python(self.evaluation, mode="json")
        told = json.dumps([settings(self.config), self.needs, evaluation], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def told(self, sweep: str) -> dict[str, Any]:
        """For whoever reads results."""
        return {
            "sweep": sweep,
            "base": self.base,
            "ablation": self.ablation,
            "seed": self.seed,
            "description": self.description,
        }


def write_cells(folder: Path, cells: Sequence[Cell]) -> None:
    """Makes the cells' folders, and `sweep.json`, which keeps those that are there already, too.

    Raises:
      ValueError: a folder holds a cell of another configuration.
    """
    name = folder.absolute().name
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path = folder / cell.name / "cell.json"
        before = read_json(path) or {}
        if before.get("hash", cell.fingerprint) != cell.fingerprint:
            raise ValueError(
                f"{path.parent} holds a cell of another configuration (base, options, data or evaluation differ); "
                "give the same ones, or name another --folder"
            )
        commands = [
            {"words": [sys.executable, "-m", "experiments.cli", *words], "leaves": leaves}
            for words, leaves in cell.commands(folder)
        ]
        told = {**cell.told(name), "needs": cell.needs, "hash": cell.fingerprint, "commands": commands}
        write_json(path, told)
    with locked(folder / "sweep.lock", waits=True):
        there = read_json(folder / "sweep.json") or {"cells": [], "parts": []}
        for cell in cells:
            kind = "parts" if cell.evaluation is None else "cells"
            described = {"folder": cell.name, **cell.told(name)}
            there[kind] = [one for one in there[kind] if one["folder"] != cell.name] + [described]
        write_json(folder / "sweep.json", {"sweep": name, "cells": there["cells"], "parts": there["parts"]})
