"""Training: this project's step against transformers' `IdeficsForVisionText2Text` trained in PyTorch.

The same weights, the same real examples (MovieLens small, five films with poster and attributes each, four tasks, as
the paper has them), float32, the same optimizer. Run it with

    python -m experiments.benchmarks.training_speed --data data

Ours is the step that `unimp train` compiles, on the loader's packed rows, ready in memory. The peer has one example a
row, padded on the right to the longest of its batch, as the UniMP reference trains it; AdamW is the fused one, what is
frozen has no gradient, and a frozen tower runs under no_grad. Before anything is timed, both must give the same loss of
the same examples.

Every measurement has a process of its own. First each side tries what it may be run with (ours: one host device or one
a core, a batch as a whole or in parts, YNNPACK's or Eigen's products; the peer: examples a batch), then the best of
each take turns. What counts is answer tokens a second: tokens that are trained on. Memory is the most that a process
had resident while it trained. Both sides have the same allocator, told to use huge pages.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro

from data_pipelines.prepare import prepare
from experiments.benchmarks.sizes import Size
from experiments.benchmarks.training_task import SETTINGS, experiment, prepare_task

EIGEN = "--xla_cpu_experimental_ynn_fusion_type="
"""XLA's flag that leaves products to Eigen, in the place of YNNPACK."""

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""glibc asks for memory in pages of 2 MB: what a step works in is allocated anew each time, and to be given it in pages
of 4 KB takes a good part of a small step."""

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model, and what it is trained on to time it."""

    size: Size
    rows: int
    """Rows a batch, of 256 tokens each, for ours."""
    batches: int


TRAINED = (
    Trained(Size(64, 2), rows=16, batches=4),
    Trained(Size(128, 4), rows=16, batches=4),
    Trained(Size(256, 6), rows=16, batches=2),
    Trained(Size(512, 8), rows=8, batches=2),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared."""

    data: Path = Path("data")
    """Where MovieLens small is, or will be, prepared."""
    sizes: tuple[str, ...] = tuple(trained.size.name for trained in TRAINED)
    settings: tuple[str, ...] = tuple(SETTINGS)
    """What examples are like, and what trains: see `training_task.SETTINGS`."""
    repeats: int = 3
    """Processes a side, in turns; their median is taken."""
    seconds: float = 5.0
    """That a timing takes at least."""
    devices: tuple[int, ...] = (1, len(os.sched_getaffinity(0)))
    """Host devices that ours is tried with."""
    accumulate: tuple[int, ...] = (1, 2, 4)
    """Parts that ours is tried with working a batch through in."""
    flags: tuple[str, ...] = ("", EIGEN)
    """XLA_FLAGS that ours is tried with."""
    huge_pages: bool = True
    """Both sides run with `HUGE_PAGES`."""
    peer_batches: tuple[int, ...] = (8, 16, 32)
    """Examples a batch that the peer is tried with."""
    tolerance: float = 1e-4
    """How far apart the two losses may be."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Way:
    """How a side is run."""

    arguments: dict[str, Any]
    flags: str = ""
    huge_pages: bool = True

    def run(self, **more: Any) -> Figures:
        """In a process of its own, which sees no accelerator."""
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": self.flags}
        if self.huge_pages:
            environment["GLIBC_TUNABLES"] = HUGE_PAGES
        asked = json.dumps(self.arguments | more)
        command = [sys.executable, "-m", "experiments.benchmarks.training_worker", asked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{asked} failed:\n{done.stderr[-4000:]}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures


def best_of(ways: list[Way], **more: Any) -> tuple[Way, Figures]:
    """The way that gives the most answers a second, and what it gave."""
    figures = [way.run(**more) for way in ways]
    best = max(range(len(ways)), key=lambda number: figures[number]["answers"])
    return ways[best], figures[best]


def matmul_peak(options: Options) -> float:
    """FLOP/s of large float32 products: the best that torch or JAX makes of all cores."""
    ways = [Way({"side": "peak"}), *(Way({"side": "our_peak"}, flags) for flags in options.flags)]
    return max(way.run()["flops"] for _ in range(2) for way in ways)


def compare(trained: Trained, setting: str, options: Options, folder: Path) -> dict[str, Any]:
    """Medians, spreads and ratios of one size."""
    config = experiment(trained.size, setting, trained.rows, options.data, options.seed)
    made_in = prepare_task(config, folder / "task", trained.batches, options.peer_batches)
    task = {"task": str(folder / "task"), "seconds": options.seconds}
    ours, our_first = best_of(
        [
            Way({"side": "ours", "devices": devices, "accumulate": parts}, flags, options.huge_pages)
            for devices in sorted(set(options.devices))
            for parts in options.accumulate
            for flags in options.flags
        ],
        **task,
    )
    theirs, their_first = best_of(
        [Way({"side": "peer", "examples": count}, "", options.huge_pages) for count in options.peer_batches], **task
    )
    if abs(our_first["loss"] - their_first["loss"]) > options.tolerance:
        raise RuntimeError(f"the losses differ: {our_first['loss']} and {their_first['loss']}")
    turns = [(ours.run(**task), theirs.run(**task)) for _ in range(options.repeats)]
    fed = dataclasses.replace(ours, arguments=ours.arguments | {"side": "fed"}).run(**task)
    medians = [
        {name: statistics.median(figures[name] for figures in side) for name in side[0]}
        for side in zip(*turns, strict=True)
    ]
    rates = [[figures["answers"] for figures in side] for side in zip(*turns, strict=True)]
    return {
        "ours": medians[0],
        "theirs": medians[1],
        "ratio": medians[0]["answers"] / medians[1]["answers"],
        "spreads": [max(side) / min(side) for side in rates],
        "fed": fed,
        "made_in": made_in,
        "way": f"{ours.arguments['devices']} dev., {ours.arguments['accumulate']} parts, "
        + ("Eigen" if ours.flags == EIGEN else ours.flags or "YNNPACK"),
        "their_way": f"{theirs.arguments['examples']} a batch",
    }


def main(options: Options) -> None:
    if not (options.data / "movielens_small").exists():
        print(prepare("movielens_small", options.data))
    cores = len(os.sched_getaffinity(0))
    peak = matmul_peak(options)
    print(
        f"{cores} cores, float32, median of {options.repeats}, seed {options.seed}; "
        f"large float32 products: {peak / 1e9:.0f} GFLOP/s\n"
    )
    print(
        "| model | parameters | trains | peer: examples/s | answers/s (max/min) | GB | ours: examples/s "
        "| **answers/s** (max/min) | GB | **ratio** | of the peak | loader: waiting | features (s) | ours run with "
        "| peer run with |"
    )
    print("|---" * 15 + "|", flush=True)
    for trained in TRAINED:
        for setting in options.settings if trained.size.name in options.sizes else ():
            with tempfile.TemporaryDirectory() as folder:
                x = compare(trained, setting, options, Path(folder))
            ours, theirs, spreads = x["ours"], x["theirs"], x["spreads"]
            print(
                f"| {trained.size.name} | {ours['parameters'] / 1e6:.1f} M | {setting} "
                f"| {theirs['examples']:.1f} | {theirs['answers']:.0f} ({spreads[1]:.2f}) | {theirs['peak'] / 1e9:.2f} "
                f"| {ours['examples']:.1f} | **{ours['answers']:.0f}** ({spreads[0]:.2f}) | {ours['peak'] / 1e9:.2f} "
                f"| **{x['ratio']:.2f}** | {ours['flops'] / ours['step'] / peak:.0%} | {x['fed']['waiting']:.1%} "
                f"| {x['made_in']:.0f} | {x['way']} | {x['their_way']} |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Options))
