"""Where workers run: in processes of this machine, each with devices of its own, or as jobs of SLURM."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from experiments.sweep.devices import Share
from experiments.sweep.worker import FAILED, Worker


class Running(Protocol):
    """A worker at a cell."""

    def status(self) -> int | None:
        """What `Worker.run` returned, once it has."""

    def end(self) -> None:
        """Asks it to."""


class Engine(Protocol):
    """
    Attributes:
      room: workers that can run at once.
      outlives: whether workers go on when the sweep is asked to end.
    """

    room: int
    outlives: bool

    def start(self, folder: Path) -> Running: ...


class Local:
    """A process a cell, each on its share of the devices."""

    outlives = False

    def __init__(self, shares: Sequence[Share]):
        self.room, self._free = len(shares), list(shares)

    def start(self, folder: Path) -> Running:
        share = self._free.pop(0)
        cores = ",".join(map(str, share.cores))
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep.worker", str(folder), "--cores", cores],
            env=os.environ | share.environment,
        )
        return _Process(process, share, self._free)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], share: Share, free: list[Share]):
        self._process, self._share, self._free = process, [share], free

    def status(self) -> int | None:
        status = self._process.poll()
        if status is not None:
            self._free += self._share
            self._share = []
        return status

    def end(self) -> None:
        self._process.terminate()


@dataclasses.dataclass(frozen=True)
class SlurmJobs:
    """What a job of SLURM is given, a job a cell."""

    minutes: int = 1440
    """Until it is ended; it saves before, and queues again."""
    gpus: int = 1
    cpus: int = 8
    memory_gb: int | None = None
    partition: str | None = None
    account: str | None = None
    setup: tuple[str, ...] = ()
    """Lines before it, e.g. 'source .venv/bin/activate'."""
    options: tuple[str, ...] = ()
    """More for sbatch, as NAME=VALUE."""
    timeouts: int = 100
    """After so many it does not queue again."""


class Submitit:
    """A job a cell, through submitit, in whose folder `slurm` beside the cells its scripts and logs are."""

    outlives = True

    def __init__(
        self, folder: Path, config: SlurmJobs, room: int, cluster: Literal["slurm", "local", "debug"] = "slurm"
    ):
        """
        Raises:
          ValueError: submitit is not installed, there is no SLURM, or an option is not NAME=VALUE.
        """
        try:
            import submitit
        except ImportError as error:
            raise ValueError("--engine slurm needs submitit: pip install 'unimp_jax[sweep]'") from error
        self.room = room
        more = dict(option.partition("=")[::2] for option in config.options)
        if not all(more.values()):
            raise ValueError(f"--slurm.options {' '.join(config.options)}: NAME=VALUE each")
        try:
            self._executor = submitit.AutoExecutor(
                folder / "slurm" / "%j", cluster=cluster, slurm_max_num_timeout=config.timeouts
            )
        except RuntimeError as error:
            raise ValueError(f"--engine slurm: {' '.join(str(error).split())}") from error
        self._executor.update_parameters(
            name=f"unimp-{folder.absolute().name}",
            timeout_min=config.minutes,
            gpus_per_node=config.gpus,
            cpus_per_task=config.cpus,
            mem_gb=config.memory_gb,
            slurm_partition=config.partition,
            slurm_account=config.account,
            slurm_setup=list(config.setup) or None,
            slurm_additional_parameters=more or None,
        )

    def start(self, folder: Path) -> Running:
        return _Job(self._executor.submit(CellJob(folder.absolute(), Path.cwd())))


class CellJob:
    """What submitit runs; before a time limit or a preemption it saves, and the job queues again."""

    def __init__(self, folder: Path, start: Path):
        """`start`: the folder that paths on command lines are relative to."""
        self._folder, self._start = folder, start
        self._worker: Worker | None = None
        self._outcome: Future[int] | None = None

    def __call__(self) -> int:
        os.chdir(self._start)
        self._worker = Worker(self._folder)
        with ThreadPoolExecutor(1) as thread:  # signals interrupt the main one: the work ends in order
            self._outcome = thread.submit(self._worker.run)
            return self._outcome.result()

    def checkpoint(self) -> Any:
        """Called in the signal's handler: ends the work, and says what is to queue again."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            self._worker.end()
        if self._outcome is not None:
            wait([self._outcome])
        return DelayedSubmission(CellJob(self._folder, self._start))


class _Job:
    def __init__(self, job: Any):
        self._job = job

    def status(self) -> int | None:
        if not self._job.done():
            return None
        return FAILED if self._job.exception() is not None else self._job.result()

    def end(self) -> None:
        self._job.cancel()
