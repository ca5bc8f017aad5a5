"""`experiments/PLANS.md`, written by one command:

    python -m experiments.plan.document

Each plan is compiled by a process of its own, two at a time, and kept as a JSON file, so that what was done is not
done again when the command is given once more.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from data_pipelines.atomic import write_json
from experiments.config import ExperimentConfig
from experiments.plan.plan import make_plan, to_json
from experiments.plan.search import search
from experiments.plan.show import GIB, table
from experiments.presets import PRESETS
from unimp_jax.planning.chips import Slices
from unimp_jax.sharding import MeshConfig

MODELS = ("openflamingo-3b", "openflamingo-4b", "openflamingo-9b")
HARDWARE = (Slices("v5e-16"), Slices("v5p-64"), Slices("v6e-256"), Slices("v5p-64", 2))
GROWING = (Slices("v5e-16"), Slices("v5e-64"), Slices("v5e-256"), Slices("v5e-256", 2))
DEPTHS = (12, 24, 48)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One plan of the document: the best of a search, the same rows a chip on more chips, or another depth."""

    kind: Literal["best", "growing", "depth"]
    model: str
    slices: Slices
    layers: int | None = None

    @property
    def name(self) -> str:
        depth = "" if self.layers is None else f"-{self.layers}"
        return f"{self.kind}-{self.model}-{self.slices.count}x{self.slices.name}{depth}"


def cells() -> list[Cell]:
    best = [Cell("best", model, slices) for model in MODELS for slices in HARDWARE]
    growing = [Cell("growing", model, slices) for model in MODELS for slices in GROWING]
    return list(dict.fromkeys([*best, *growing, *depths()]))


def depths() -> list[Cell]:
    """The preset's own depth is the first cell of those that grow."""
    own = PRESETS[MODELS[0]].model.decoder.layers
    return [
        Cell("growing", MODELS[0], GROWING[0]) if layers == own else Cell("depth", MODELS[0], GROWING[0], layers)
        for layers in DEPTHS
    ]


def make(cell: Cell) -> dict[str, Any]:
    """The plan of a cell, as JSON has it."""
    preset = PRESETS[cell.model]
    if cell.kind == "best":
        return to_json(search(preset, cell.slices, 1)[0])
    if cell.kind == "growing":
        plans = [make_plan(grown(preset, cell.slices, mesh), cell.slices) for mesh in grown_meshes(cell.slices)]
        return to_json(max(plans, key=lambda plan: plan.tokens_per_second))
    decoder = dataclasses.replace(preset.model.decoder, layers=cell.layers or preset.model.decoder.layers)
    deep = dataclasses.replace(preset, model=dataclasses.replace(preset.model, decoder=decoder))
    return to_json(make_plan(grown(deep, cell.slices, grown_meshes(cell.slices)[0]), cell.slices))


def grown_meshes(slices: Slices) -> list[MeshConfig]:
    """Parameters split over all chips of a slice; on a torus of 16 x 16, also over 16 and copied."""
    whole = MeshConfig(slice=slices.count, fsdp=slices.chips_each)
    return [whole, dataclasses.replace(whole, data=16, fsdp=16)] if slices.chips_each == 256 else [whole]


def grown(preset: ExperimentConfig, slices: Slices, mesh: MeshConfig) -> ExperimentConfig:
    """The preset with its remat policy and four rows a chip."""
    return dataclasses.replace(
        preset,
        mesh=mesh,
        loader=dataclasses.replace(preset.loader, rows=4 * slices.chips),
    )


def make_and_keep(cell: Cell, folder: Path) -> None:
    path = folder / f"{cell.name}.json"
    if not path.exists():
        write_json(path, make(cell))


def document(kept: dict[str, dict[str, Any]]) -> str:
    """The page, from plans by their cells' names."""

    def of(some: Sequence[Cell]) -> list[dict[str, Any]]:
        return [kept[cell.name] for cell in some]

    every = cells()
    lines = [
        "# Plans: the 3B, 4B and 9B models on TPUs",
        "",
        "Written by `python -m experiments.plan.document` (with `pip install 'unimp_jax[tpu]'`; no TPU is needed or",
        "used): XLA's TPU compiler compiles the real train step of each preset ahead of time, and `unimp plan` reads",
        "the program. Nothing here was measured on a TPU. Rows are 1,024 tokens with up to 24 images; bfloat16, the",
        "paper's recipe (resampler, gated blocks and embeddings train), splash attention for text.",
        "",
        "Memory is the compiler's. A step's seconds are estimated twice: by a roofline (products at the chip's peak,",
        "bytes the program moves to and from memory, bytes sent along one ring of the torus; the longest of the three,",
        "plus what crosses slices), and by the compiler's own count of cycles of what it compiled, with kernels at the",
        "chip's peak. Tokens/s and MFU go by the longer one; MFU counts what must be computed, not what is computed",
        "again. Token slots are counted; packed rows of real users fill about 95 % of them.",
    ]
    for model in MODELS:
        lines += [
            "",
            f"## {model}",
            "",
            table(of([cell for cell in every if cell.kind == "best" and cell.model == model])),
        ]
    lines += [
        "",
        "The mesh, policy and batch are the first of `unimp plan --search`'s candidates that fits.",
        "",
        "## From 16 to 512 chips",
        "",
        "Four rows a chip, remat full. Parameters are split over all chips of a slice or, of 256, over 16 and copied,",
        "whichever is estimated faster; 512 chips are two slices, which exchange the gradients of what trains. Linear",
        "is the tokens a second and chip of the 16.",
    ]
    for model in MODELS:
        grows = of([cell for cell in every if cell.kind == "growing" and cell.model == model])
        first = grows[0]["tokens_per_second"] / grows[0]["chips"]
        shares = [plan["tokens_per_second"] / plan["chips"] / first for plan in grows]
        lines += ["", f"{model}: " + ", ".join(
            f"{plan['chips']} chips {share:.1%}" for plan, share in zip(grows, shares, strict=True)
        ) + " of linear.", "", table(grows)]  # fmt: skip
    lines += [
        "",
        "## Depth",
        "",
        f"{MODELS[0]} with other numbers of layers on {GROWING[0]}: layers are scanned, so the program stays as it is.",
        "",
        "| layers | program as lowered (bytes) | compiled code (MiB) | compiled in (s) | GiB of a device |",
        "|---:|---:|---:|---:|---:|",
    ]
    for layers, plan in zip(DEPTHS, of(depths()), strict=True):
        one = plan["estimate"]
        lines.append(
            f"| {layers} | {one['text_bytes']:,} | {one['memory']['program'] / 2**20:.1f} | "
            f"{one['compile_seconds']:.0f} | {plan['memory_total'] / GIB:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(folder: Path = Path("runs/plans"), file: Path = Path("experiments/PLANS.md"), workers: int = 2) -> None:
    """Compiles what is not there yet, and writes the page.

    Args:
      folder: where single plans are kept.
      file: the page.
      workers: processes that compile at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        running = {pool.submit(make_and_keep, cell, folder): cell for cell in cells()}
        for done in concurrent.futures.as_completed(running):
            done.result()
            print(running[done].name, flush=True)
    kept = {cell.name: json.loads((folder / f"{cell.name}.json").read_text()) for cell in cells()}
    file.write_text(document(kept))


if __name__ == "__main__":
    tyro.cli(main)
