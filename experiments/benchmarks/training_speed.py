"""Training: this project's step against transformers' `IdeficsForVisionText2Text` trained in PyTorch.

    python -m experiments.benchmarks.training_speed --data data

The same weights, the same real examples (MovieLens small, five films with poster and attributes each, four tasks, as
the paper has them), float32, the same optimizer. Ours is the step that `unimp train` compiles, on the loader's packed
rows, ready in memory. The peer has one example a row, padded on the right to the longest of its batch, as the UniMP
reference trains it; AdamW is the fused one, and nothing is recorded for the gradient of what is frozen. Both must give
the same loss of the same examples.

Every measurement has a process of its own, in turns, with glibc's allocator told to use huge pages. The peer is tried
with several sizes of a batch, of which the fastest counts. What counts is answer tokens a second: tokens that are
trained on. Memory is the most that a process had resident while it trained.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import tyro

from experiments.benchmarks import training_ours, training_peer
from experiments.benchmarks.measuring import CORES, HOST_ALONE, in_own_process, print_header, print_row
from experiments.benchmarks.training_task import SETTINGS, experiment, prepare_task

ENVIRONMENT = HOST_ALONE | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""What a step works in is allocated anew each time, and to be given it in pages of 4 KB in the place of 2 MB takes a
good part of a small step."""

TRAINED = {"64 x 2": (16, 4), "128 x 4": (16, 4), "256 x 6": (16, 2), "512 x 8": (8, 2)}
"""Size -> rows a batch, of 256 tokens each, and batches, for ours."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared."""

    data: Path = Path("data")
    """Where MovieLens small is, or will be, prepared."""
    sizes: tuple[str, ...] = tuple(TRAINED)
    settings: tuple[str, ...] = tuple(SETTINGS)
    """What examples are like, and what trains: see `training_task.SETTINGS`."""
    repeats: int = 3
    """Processes a side, in turns; their median is taken."""
    seconds: float = 5.0
    """That a timing takes at least."""
    devices: int = CORES
    """Host devices of ours."""
    accumulate: int = 2
    """Parts that ours works a batch through in."""
    peer_batches: tuple[int, ...] = (8, 16, 32)
    """Examples a batch that the peer is tried with."""
    tolerance: float = 1e-4
    """How far apart the two losses may be."""
    seed: int = 0


def compare(size: str, setting: str, options: Options, folder: Path) -> list[str]:
    """A row of the table.

    Raises:
      RuntimeError: the losses differ.
    """
    task, (rows, batches) = str(folder / "task"), TRAINED[size]
    config = experiment(size, setting, rows, options.data, options.seed)
    cached_in = prepare_task(config, Path(task), batches, options.peer_batches)
    way = (task, options.seconds, options.devices, options.accumulate)
    ours, theirs = [], []
    for _ in range(options.repeats):
        ours.append(in_own_process(training_ours.measure, *way, **ENVIRONMENT))
        theirs.append([in_own_process(training_peer.measure, *way[:2], n, **ENVIRONMENT) for n in options.peer_batches])
    if abs(ours[0]["loss"] - theirs[0][0]["loss"]) > options.tolerance:
        raise RuntimeError(f"{size}, {setting}: our loss is {ours[0]['loss']}, the peer's {theirs[0][0]['loss']}")
    our_rates = np.array([one["answers"] for one in ours])
    their_rates = np.array([[one["answers"] for one in turn] for turn in theirs])
    best = int(np.median(their_rates, axis=0).argmax())
    our_rate, their_rate = np.median(our_rates), np.median(their_rates[:, best])

    def spread(rates: np.ndarray) -> str:
        return f"({rates.max() / rates.min():.2f})"

    return [
        size, f"{ours[0]['parameters'] / 1e6:.1f} M", setting,
        f"{their_rate:.0f} {spread(their_rates[:, best])}", f"{options.peer_batches[best]}",
        f"{np.median([turn[best]['peak'] for turn in theirs]) / 1e9:.2f}",
        f"**{our_rate:.0f}** {spread(our_rates)}", f"{np.median([one['peak'] for one in ours]) / 1e9:.2f}",
        f"**{our_rate / their_rate:.2f}**", f"{np.median([one['of the peak'] for one in ours]):.0%}",
        f"{cached_in:.0f}",
    ]  # fmt: skip


def main(options: Options) -> None:
    print(
        f"{CORES} cores, {options.devices} devices, a batch in {options.accumulate} parts, float32, median of "
        f"{options.repeats}, seed {options.seed}\n"
    )
    print_header(
        [
            "model", "parameters", "setting", "peer, answers/s (max/min)", "a batch", "GB",
            "ours, **answers/s** (max/min)", "GB", "**ratio**", "of the peak", "features (s)",
        ]
    )  # fmt: skip
    for size in options.sizes:
        for setting in options.settings:
            with tempfile.TemporaryDirectory() as folder:
                print_row(compare(size, setting, options, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
