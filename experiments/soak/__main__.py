"""A soak test: a run that is killed again and again must end as one that never was.

    python -m experiments.soak --folder runs/soak --kills 50 --seed 0

One run is left alone. Another, by the same command, is sent SIGKILL, SIGTERM or both at random moments, and is started
again each time. In the end parameters, optimizer and all else of the last and the best checkpoint must be the same bit
for bit, and so must each figure of the log that is no timing; nothing may be left behind. The exit status is 1 where
something differs, or where a process ends otherwise than by the signal.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import sys
import time
from pathlib import Path

import jax
import tyro
from absl import logging

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from experiments.soak.compare import compare, leftovers
from experiments.soak.disturb import Kill, disturb, draw_moment, draw_signals
from experiments.soak.run import Command, SoakError, logged, undisturbed


@dataclasses.dataclass(frozen=True)
class Options:
    """What is killed, and how often."""

    folder: Path = Path("runs/soak")
    """Is made, for the two runs and what they print."""
    data: Path = Path("data")
    """Where MovieLens small is prepared, or will be."""
    kills: int = 50
    steps: int = 300
    """Of training."""
    seed: int = 0
    """Of signals and moments; when exactly a signal arrives no seed can say."""


def soak(options: Options) -> list[str]:
    """All that is wrong in the end: nothing, one hopes.

    Raises:
      DataError: the folder is there already.
      SoakError: a process ended as it must not.
    """
    if options.folder.exists():
        raise DataError(f"{options.folder} is there already: name another folder")
    if not (options.data / "movielens_small").exists():
        print(prepare("movielens_small", options.data))
    options.folder.mkdir(parents=True)
    right, run, printed = (options.folder / name for name in ("undisturbed", "disturbed", "printed.txt"))
    command = Command(options.data, options.folder / "compiled", options.steps)
    whole = undisturbed(command, right, printed)
    start = undisturbed(command, right, printed)  # it restores, compiles by the cache, and is over
    print(f"undisturbed: {options.steps} steps in {whole:.1f} s; a start takes {start:.1f} s", flush=True)
    rng, since, kills = random.Random(options.seed), time.perf_counter(), []
    for number, signals in enumerate(draw_signals(options.kills, rng)):
        moment = draw_moment(number, options.kills, signals, logged(run), options.steps, start, rng)
        kills.append(disturb(command, run, moment, printed))
        print(f"{number + 1:>3}  {kills[-1]}", flush=True)
    undisturbed(command, run, printed)
    print(f"\n{table(kills)}\n{len(kills)} kills and starts anew in {time.perf_counter() - since:.0f} s", flush=True)
    return [*compare(right, run), *leftovers(right, run)]


def table(kills: list[Kill]) -> str:
    """How many of which, and how they ended."""
    counts = collections.Counter(
        (" + ".join(one.name for one in kill.moment.signals), kill.moment.when, kill.status) for kill in kills
    )
    rows = [f"{'signal':<17} {'while':<10} {'status':>6} {'times':>6}"]
    return "\n".join(
        rows + [f"{signals:<17} {when:<10} {status:>6} {n:>6}" for (signals, when, status), n in sorted(counts.items())]
    )


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    jax.config.update("jax_platforms", "cpu")  # it only compares; an accelerator is for those that train
    logging.set_verbosity(logging.ERROR)  # Orbax misses metadata of its own in parts of a checkpoint
    try:
        wrong = soak(options)
    except (DataError, SoakError) as error:
        sys.exit(f"FAILED: {error}")
    if wrong:
        sys.exit("FAILED: " + "\n".join(wrong))
    print("the same bit for bit, and nothing is left behind")


if __name__ == "__main__":
    main()
