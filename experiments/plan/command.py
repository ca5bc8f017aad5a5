"""The options and the output of `unimp plan`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.config import ExperimentConfig
from experiments.plan.plan import Plan, make_plan, to_json
from experiments.plan.search import search
from experiments.presets import DESCRIPTIONS, PRESETS
from unimp_jax.planning.chips import Slices

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """The hardware, and whether to search for the best way to use it."""

    tpu: str = "v5e-16"
    """A TPU slice by its cloud name: v5e-16, v6e-256 (chips), v5p-64 (cores, two per chip)."""
    num_slices: int = 1
    """Number of slices; more than one require --mesh.slice."""
    search: bool = False
    """Try and rank meshes, remat policies and batch sizes, instead of using those of the preset."""
    candidates: int = 4
    """Number of fitting candidates that a search compiles."""
    json: Path | None = None
    """File for the same output as JSON."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates {self.candidates} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A preset and the hardware."""

    name: tyro.conf.Fixed[str]
    experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    on: Annotated[PlanConfig, tyro.conf.arg(name="")] = PlanConfig()


PresetPlan: Any = tyro.extras.subcommand_type_from_defaults(
    {name: Planned(name, preset) for name, preset in PRESETS.items()}, DESCRIPTIONS, prefix_names=False
)


def plan_command(planned: Annotated[PresetPlan, tyro.conf.arg(name="")]) -> None:
    """Compile a preset's train step for TPUs, without needing TPUs. Does it fit, and how fast might it be?"""
    config, slices = planned.on, Slices(planned.on.tpu, planned.on.num_slices)
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)  # reports an unusable folder before anything is compiled
    plans = (
        search(planned.experiment, slices, config.candidates, lambda line: print(line, flush=True))
        if config.search
        else [make_plan(planned.experiment, slices)]
    )
    print(f"{table(plans)}\n\n{show(planned.name, plans[0])}")
    if config.json is not None:
        rows = [{"preset": planned.name, **to_json(one)} for one in plans]
        config.json.write_text(json.dumps(rows, indent=1) + "\n")


def mesh_words(mesh: dict[str, int]) -> str:
    """Formats the mesh axes that are larger than 1."""
    return " ".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "data=1"


def show(name: str, plan: Plan) -> str:
    """Formats a plan in several lines."""
    one = plan.estimate
    memory, seconds, work = one.memory, one.seconds, one.work
    chips = plan.slices.chips
    lines = [
        f"{name} on {plan.slices}: mesh {mesh_words(plan.mesh)}, {plan.rows} rows of {plan.tokens} tokens, "
        f"remat {plan.remat}, attention {plan.attention}",
        f"{'fits' if one.fits else 'DOES NOT FIT'}: {memory.total / GIB:.2f} of {one.available / GIB:.0f} GiB per "
        "device",
    ]
    parts = {
        "parameters that train": memory.trainable,
        "frozen parameters": memory.frozen,
        "optimizer": memory.optimizer,
        "batch": memory.batch,
        "activations kept": memory.activations,
        "temporaries": memory.temporaries,
        "program": memory.program,
    }
    lines += [f"  {part:<24}{size / GIB:8.2f} GiB" for part, size in parts.items()]
    lines += ["sent by a device per step"]
    small = 2**20
    for sent in one.sent:
        if sent.bytes >= small:
            lines += [f"  {sent.kind + ' over ' + ', '.join(sent.axes):<44}{sent.bytes / GIB:8.3f} GiB"]
    rest = sum(sent.bytes for sent in one.sent if sent.bytes < small)
    if rest:
        lines += [f"  {'others':<44}{rest / GIB:8.3f} GiB"]
    again = work.again / work.model
    lines += [
        f"model FLOPs {work.model:.3e} per step, {work.model / chips:.3e} per device; {again:.0%} of them are "
        "recomputed",
        f"seconds per step, each alone: products {seconds.compute:.4f}, memory {seconds.memory:.4f}, rings of a "
        f"slice {seconds.rings:.4f}, network between slices {seconds.network:.4f}",
        f"estimates: roofline {seconds.roofline:.4f} s, compiler {seconds.in_order:.4f} s, of which "
        f"{seconds.waiting:.4f} s wait for communication within a slice; by the larger: "
        f"{plan.tokens_per_second:,.0f} tokens/s, {plan.tokens_per_second / chips:,.0f} per chip, MFU "
        f"{one.mfu:.1%} ({one.mfu_without_waiting:.1%} without waiting)",
        f"compiled in {one.compile_seconds:.0f} s",
    ]
    return "\n".join(lines)


def table(plans: Sequence[Plan]) -> str:
    """Formats plans as a Markdown table, one line each."""
    columns = (
        "slices, chips, mesh, rows, remat, GiB of a device, step by roofline and compiler (s), of it waiting (s), "
        "tokens/s, MFU, MFU without waiting"
    )
    lines = [f"| {columns.replace(', ', ' | ')} |", "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|"]
    for plan in plans:
        one, seconds = plan.estimate, plan.estimate.seconds
        lines.append(
            f"| {plan.slices} | {plan.slices.chips} | {mesh_words(plan.mesh)} | {plan.rows} | {plan.remat} | "
            f"{one.memory.total / GIB:.1f} of {one.available / GIB:.0f} | {seconds.roofline:.3f}, "
            f"{seconds.in_order:.3f} | {seconds.waiting:.3f} | {plan.tokens_per_second:,.0f} | {one.mfu:.1%} | "
            f"{one.mfu_without_waiting:.1%} |"
        )
    return "\n".join(lines)
