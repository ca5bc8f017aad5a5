"""What `unimp plan` does with its options."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.config import ExperimentConfig
from experiments.plan.plan import make_plan, to_json
from experiments.plan.search import search
from experiments.plan.show import show, table
from experiments.presets import DESCRIPTIONS, PRESETS
from unimp_jax.planning.chips import Slices


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Which hardware, and whether to look for the best way to use it."""

    tpu: str = "v5e-16"
    """A slice as clouds name it: v5e-16, v6e-256 (chips), v5p-64 (cores, two a chip)."""
    num_slices: int = 1
    """So many of them; more than one need --mesh.slice."""
    search: bool = False
    """Try meshes, remat policies and batch sizes, and rank them; those of the preset do not count then."""
    candidates: int = 4
    """So many that fit are compiled in a search."""
    json: Path | None = None
    """A file for the same as JSON."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """A preset, and the hardware."""

    name: tyro.conf.Fixed[str]
    experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    on: Annotated[PlanConfig, tyro.conf.arg(name="")] = PlanConfig()


PresetPlan: Any = tyro.extras.subcommand_type_from_defaults(
    {name: Planned(name, preset) for name, preset in PRESETS.items()}, DESCRIPTIONS, prefix_names=False
)


def plan(name: str, experiment: ExperimentConfig, config: PlanConfig) -> None:
    """Prints a plan, or those that a search found.

    Raises:
      ValueError: as of `make_plan`, or libtpu is not installed.
    """
    slices = Slices(config.tpu, config.num_slices)
    plans = (
        search(experiment, slices, config.candidates, lambda line: print(line, flush=True))
        if config.search
        else [make_plan(experiment, slices)]
    )
    print(f"{table(plans)}\n\n{show(name, plans[0])}")
    if config.json is not None:
        config.json.write_text(json.dumps([{"preset": name, **to_json(one)} for one in plans], indent=1) + "\n")


def plan_command(planned: Annotated[PresetPlan, tyro.conf.arg(name="")]) -> None:
    """Compile a preset's train step for TPUs that are not at hand: does it fit, and how fast might it be?"""
    plan(planned.name, planned.experiment, planned.on)
