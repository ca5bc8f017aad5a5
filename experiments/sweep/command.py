"""The options and the implementation of `unimp sweep`."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.evals.config import EvaluationConfig, Flag
from experiments.presets import read_training
from unimp_jax.processes import ProcessesConfig

if TYPE_CHECKING:
    from experiments.sweep.grid import Base
    from experiments.sweep.run import Runner


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """Options of SLURM jobs, one job per cell."""

    minutes: int = 1440
    """Time limit; before it, the job saves a checkpoint and queues again."""
    setup: tuple[str, ...] = ()
    """Shell lines that run first, for example 'source .venv/bin/activate'."""
    options: tuple[str, ...] = ("gpus-per-node=1", "cpus-per-task=8")
    """Options of sbatch, as NAME=VALUE."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Options that all sweeps have."""

    folder: Path = Path("runs/sweep")
    """The folder of the sweep. The same command on the same folder continues it, and runs nothing twice."""
    jobs: int = 1
    """Number of cells that run at once. On this machine they share its devices evenly; under SLURM, they are queued."""
    devices: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """The devices of this machine that are used."""
    engine: Literal["local", "slurm", "print"] = "local"
    """Run cells on this machine or as SLURM jobs; or print their commands in an order in which they can be run, and
    write only the files that describe the cells."""
    slurm: SlurmConfig = SlurmConfig()
    """Options of SLURM jobs."""
    train: Annotated[str, tyro.conf.arg(metavar="OPTIONS ...")] = ""
    """Must come last: everything after it are options of `unimp train`, which change the base."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationsConfig(SweepConfig):
    """Train and evaluate a base and ablations of it, each with several seeds."""

    base: str = "tiny"
    """A preset of `unimp train`."""
    only: tuple[str, ...] = ()
    """Names of ablations; by default all that are meaningful for the base."""
    seeds: tuple[int, ...] = (0,)
    """Seeds with each of which every ablation is trained."""
    evaluation: EvaluationConfig = EvaluationConfig(checkpoint="latest", rivals=())
    """How each cell is evaluated; by default after its last step, so that all have had the same number of steps."""
    lists: Annotated[Flag, tyro.conf.arg(name="list")] = False
    """Only print names and descriptions of all ablations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(SweepConfig):
    """Search hyper-parameters with Optuna, by the validation metric of `checkpoint.best-metric`."""

    base: tyro.conf.Positional[str]
    """A preset of `unimp train`."""
    space: tuple[str, ...]
    """Fields and their values: NAME=log:LOW,HIGH (or float:, int:) or NAME=of:VALUE,VALUE,…; with the names of
    `unimp train`."""
    trials: int = 20
    """Total number of trials."""
    seed: int = 0
    """Seed of the proposals; that of training is --train --seed."""
    prune: bool = True
    """Stop trials whose validations are below the median of earlier ones."""


Sweep = (
    Annotated[AblationsConfig, tyro.conf.subcommand("ablations", prefix_name=False)]
    | Annotated[SearchConfig, tyro.conf.subcommand("search", prefix_name=False)]
)


def sweep_command(config: Annotated[Sweep, tyro.conf.arg(name="")]) -> None:
    """Train and evaluate many runs: ablations, or a hyperparameter search."""
    status = sweep(config)
    if status:
        sys.exit(status)


def sweep(config: AblationsConfig | SearchConfig) -> int:
    """Runs a sweep and returns its exit status: 0 if all is done, 1 if something failed, 143 if it was asked to end.
    Raises ValueError if the sweep is invalid, or cannot run here."""
    from experiments.sweep.ablations import list_ablations
    from experiments.sweep.grid import Base

    if isinstance(config, AblationsConfig) and config.lists:
        print(list_ablations())
        return 0
    training = read_training([config.base, *shlex.split(config.train)])
    if training.folder != read_training([config.base]).folder or training.processes != ProcessesConfig():
        raise ValueError("--train: leave out --folder and --processes; a sweep sets them for each cell")
    base = Base.open(config.base, training.experiment)
    if isinstance(config, AblationsConfig):
        return run_ablations(config, base)
    return run_search(config, base)


def run_ablations(config: AblationsConfig, base: Base) -> int:
    from experiments.sweep.cells import write_cells
    from experiments.sweep.grid import plan
    from experiments.sweep.job import is_done
    from experiments.sweep.run import open_runner, run_cells, summary

    cells, refused = plan(base, config.only, config.seeds, config.evaluation)
    for name, reason in refused.items():
        print(f"left out: {name}: {reason}")
    runner = None if config.engine == "print" else open_runner(config)
    write_cells(config.folder, cells)
    if runner is None:
        for cell in cells:
            if not is_done(config.folder / cell.name):
                print(f"# {cell.name}: {cell.description}")
                print("\n".join(shlex.join(["unimp", *words]) for words, _ in cell.commands(config.folder)))
        return 0
    print(f"{len(cells)} cells in {config.folder}")
    results = run_cells({cell.name: cell.needs for cell in cells}, runner)
    print(summary(config.folder, results))
    return exit_status(runner, all(one.state == "done" for one in results))


def run_search(config: SearchConfig, base: Base) -> int:
    if config.engine == "print":
        raise ValueError("--engine print: the next trials of a search depend on earlier ones; use local or slurm")
    try:
        from experiments.sweep.search import HyperparameterSearch
    except ModuleNotFoundError as error:
        raise ValueError("a search needs Optuna: pip install 'unimp_jax[sweep]'") from error
    from experiments.sweep.run import open_runner, summary

    runner = open_runner(config)
    search = HyperparameterSearch(config, base.config, runner)
    failed = [one for one in search.run() if one.state == "failed"]
    print(summary(config.folder, failed))
    print(search.ranking())
    return exit_status(runner, not failed)


def exit_status(runner: Runner, done: bool) -> int:
    if runner.stopping.is_set():
        print("asked to end: the same command continues")
        return 128 + signal.SIGTERM
    return 0 if done else 1
