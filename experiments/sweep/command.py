"""What `unimp sweep` is told, and what it does with it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.config import ExperimentConfig
from experiments.evals.config import EvaluationConfig
from experiments.preset_run import read_training
from experiments.sweep.ablations import listed
from experiments.sweep.cells import Cell, write_cells
from experiments.sweep.devices import Kind, kind_here, shares
from experiments.sweep.engines import Engine, Local, SlurmJobs, Submitit
from experiments.sweep.plan import Base, look_at, plan
from experiments.sweep.run import run_cells, summary
from experiments.sweep.search import Searched, ranking, search
from experiments.sweep.space import read_space
from experiments.sweep.worker import ENDED, is_done
from unimp_jax.processes import ProcessesConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What all sweeps have in common."""

    folder: Path = Path("runs/sweep")
    """A folder a cell goes in here. The same command on the same folder goes on, and does nothing twice."""
    jobs: int = 1
    """So many cells at once. On this machine they share its devices evenly; under SLURM it is the jobs in the queue."""
    devices: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Of this machine."""
    engine: Literal["local", "slurm", "print"] = "local"
    """Cells run on this machine, or as jobs of SLURM; or their commands are printed, in an order in which they can be
    run, and nothing is done but to write down what the cells are."""
    slurm: SlurmJobs = SlurmJobs()
    """What a job is given."""
    train: Annotated[str, tyro.conf.arg(metavar="OPTIONS ...")] = ""
    """Comes last: all that follows are options of `unimp train`, which change the base."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationsConfig(SweepConfig):
    """Train and measure a base and ablations of it, several seeds each."""

    base: str = "tiny"
    """A preset of `unimp train`."""
    only: tuple[str, ...] = ()
    """Ablations by name. None: all that make sense on the base."""
    seeds: tuple[int, ...] = (0,)
    """Each ablation is trained with each of them."""
    evaluation: EvaluationConfig = EvaluationConfig(checkpoint="latest", sasrec=False)
    """How each cell is measured: by default after its last step, so that all have had the same number of them."""
    lists: Annotated[tyro.conf.UseCounterAction[int], tyro.conf.arg(name="list")] = 0
    """Names and descriptions of all ablations are printed, and nothing else is done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(SweepConfig):
    """Search hyper-parameters through Optuna, by the validation metric of `checkpoint.best-metric`."""

    base: tyro.conf.Positional[str]
    """A preset of `unimp train`."""
    space: tuple[str, ...]
    """What is chosen, from where: NAME=log:LOW,HIGH (or float:, int:) or NAME=of:VALUE,VALUE,…; names as of
    `unimp train`."""
    trials: int = 20
    """In all."""
    seed: int = 0
    """Of what is proposed; --train --seed is the one of training."""
    prune: bool = True
    """Trials whose validations are below the median of earlier ones end early."""


Sweep = (
    Annotated[AblationsConfig, tyro.conf.subcommand("ablations", prefix_name=False)]
    | Annotated[SearchConfig, tyro.conf.subcommand("search", prefix_name=False)]
)


def sweep(config: AblationsConfig | SearchConfig) -> int:
    """Returns the exit status: 0 when all is done, 1 when something failed, 143 when it was asked to end.

    Raises:
      DataError: the base's source is not prepared.
      ValueError: the sweep makes no sense, or cannot run here.
    """
    if isinstance(config, SearchConfig):
        return run_search(config)
    if config.lists:
        print(listed())
        return 0
    experiment = read_base(config.base, config.train)
    base = Base(config.base, experiment, look_at(experiment.data), config.evaluation)
    cells, refused = plan(base, config.only, config.seeds)
    for name, reason in refused.items():
        print(f"left out: {name}: {reason}")
    engine = None if config.engine == "print" else engine_of(config)
    write_cells(config.folder, cells)
    if engine is None:
        print(commands(config.folder, cells))
        return 0
    done = sum(is_done(config.folder / cell.name) for cell in cells)
    print(
        f"{len(cells)} cells in {config.folder}, {done} of them done before; with its parts each has "
        f"{experiment.loop.steps} steps of {experiment.loader.rows} rows of {experiment.budget.tokens} tokens"
    )
    results, asked = run_cells(config.folder, {cell.name: cell.needs for cell in cells}, engine)
    print(summary(config.folder, results))
    return status(asked, all(one.state == "done" for one in results))


def run_search(config: SearchConfig) -> int:
    if config.engine == "print":
        raise ValueError("--engine print: what a search trains next hangs on what came before; local or slurm can")
    experiment = read_base(config.base, config.train)
    what = Searched(
        preset=config.base,
        config=experiment,
        space=read_space(config.space, experiment),
        trials=config.trials,
        seed=config.seed,
        prunes=config.prune,
    )
    look_at(experiment.data)
    study, results, asked = search(config.folder, what, engine_of(config))
    print(summary(config.folder, [one for one in results if one.state == "failed"]) if results else "")
    print(ranking(study, what))
    return status(asked, all(one.state != "failed" for one in results))


def status(asked: bool, well: bool) -> int:
    if asked:
        print("asked to end: the same command goes on")
        return ENDED
    return 0 if well else 1


def read_base(preset: str, train: str) -> ExperimentConfig:
    """
    Raises:
      ValueError: `train` says what a sweep decides.
    """
    words = shlex.split(train)
    training = read_training([preset, *words])
    if training.folder != read_training([preset]).folder or training.processes != ProcessesConfig():
        raise ValueError("--train: leave --folder and --processes out; a sweep gives each cell its own")
    return training.experiment


def engine_of(config: SweepConfig) -> Engine:
    """
    Raises:
      ValueError: there are too few devices, or the engine is not there.
    """
    if config.engine == "slurm":
        return Submitit(config.folder, config.slurm, config.jobs)
    kind: Kind = kind_here() if config.devices == "auto" else config.devices
    return Local(shares(config.jobs, kind))


def commands(folder: Path, cells: Sequence[Cell]) -> str:
    """Lines of a shell, in an order in which they can be run; cells that are done are left out."""
    lines = []
    for cell in cells:
        if is_done(folder / cell.name):
            continue
        lines.append(f"# {cell.name}: {cell.description}")
        lines += [shlex.join(["unimp", *words]) for words, _ in cell.commands(folder)]
    return "\n".join(lines)
