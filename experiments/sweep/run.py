"""Runs the cells of a sweep as submitit jobs, as many at the same time as there are shares of the devices."""

from __future__ import annotations

import concurrent.futures
import functools
import graphlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import submitit

from experiments.lock import is_free
from experiments.sweep.devices import DeviceShare, kind_here, shares
from experiments.sweep.job import CellJob, is_done, read_json

if TYPE_CHECKING:
    from experiments.sweep.command import SweepConfig

POLL_SECONDS = 0.2
NO_LIMIT_MINUTES = 10 * 366 * 24 * 60
"""Time after which submitit ends a local job."""
MOST_TIMEOUTS = 100
"""Number of time limits after which a SLURM job does not queue again."""


class Result(NamedTuple):
    """The outcome of a cell; "busy" if another sweep runs it."""

    name: str
    state: Literal["done", "failed", "ended", "busy", "not run"]
    text: str = ""


class Runner:
    """The submitit executor of a sweep, and the shares of the devices that its jobs get.

    Attributes:
      stopping: set when the sweep is asked to end. Local jobs are then stopped; those of SLURM stay in the queue.
      say: called with a line about each event.
    """

    def __init__(
        self,
        folder: Path,
        executor: submitit.Executor,
        shares: Sequence[DeviceShare],
        *,
        local: bool = True,
        say: Callable[[str], None] = print,
    ):
        self.folder, self.say, self.jobs, self.stopping = folder, say, len(shares), threading.Event()
        self._executor, self._local = executor, local
        self._shares: queue.SimpleQueue[DeviceShare] = queue.SimpleQueue()
        for share in shares:
            self._shares.put(share)

    def walk(self, following: Callable[[list[Result]], list[Callable[[], Result]]]) -> None:
        """Calls functions in as many threads as there are shares, until no more follow. Meanwhile SIGTERM and SIGINT
        only set `stopping`. `following` gets the new results, at first none, and returns the functions that follow."""
        before = {one: signal.signal(one, lambda *_: self.stopping.set()) for one in (signal.SIGTERM, signal.SIGINT)}
        # submitit's processes inherit the blocked signal, so that Ctrl-C does not end them before their jobs.
        block: dict[str, Any] = {"initializer": signal.pthread_sigmask, "initargs": (signal.SIG_BLOCK, {signal.SIGINT})}
        try:
            with concurrent.futures.ThreadPoolExecutor(self.jobs, **block) as threads:
                try:
                    running = {threads.submit(function) for function in following([])}
                    while running:
                        finished, running = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
                        results = [future.result() for future in finished]
                        running |= {threads.submit(function) for function in following(results)}
                except BaseException:
                    self.stopping.set()
                    raise
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def run(self, name: str, prune: Callable[[], bool] = lambda: False) -> Result:
        """Runs a cell as a job and waits for it, unless it is done; stops it once `prune` returns True."""
        folder, share, stopped = self.folder / name, self._shares.get(), False
        try:
            if is_done(folder):
                return Result(name, "done", "earlier, or by another sweep")
            if self.stopping.is_set():
                return Result(name, "ended", "before it started")
            if not is_free(folder / "lock"):
                time.sleep(POLL_SECONDS)
                return Result(name, "busy")
            self.say(f"{name} starts")
            job = self._executor.submit(CellJob(folder.absolute(), share))
            while not job.done():
                if self.stopping.is_set() and not self._local:
                    return Result(name, "ended", "for this sweep; its job remains in the queue")
                if not stopped and (self.stopping.is_set() or prune()):
                    stopped = True
                    if not self._local:
                        job.cancel(check=False)
                if stopped and self._local:  # repeatedly, because a job that only just starts misses the signal
                    os.kill(int(job.job_id), signal.SIGTERM)  # `job.cancel` would kill it after a second
                time.sleep(POLL_SECONDS)
        finally:
            self._shares.put(share)
        if is_done(folder):
            return Result(name, "done", f"in {read_json(folder / 'done.json')['seconds']:.0f} s")
        if stopped:
            return Result(name, "ended", "before it finished")
        if not is_free(folder / "lock"):
            return Result(name, "busy")
        failed = read_json(folder / "failed.json") or {"reason": f"its job ended early; see {job.paths.folder}"}
        return Result(name, "failed", failed["reason"])


def open_runner(config: SweepConfig) -> Runner:
    """Opens the runner of a sweep; ValueError if there are too few devices, no SLURM, or an option without `=`."""
    folder = config.folder / config.engine / "%j"
    if config.engine == "local":
        kind = kind_here() if config.devices == "auto" else config.devices
        executor: submitit.Executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=NO_LIMIT_MINUTES)
        return Runner(config.folder, executor, shares(config.jobs, kind))
    options = dict(option.partition("=")[::2] for option in config.slurm.options)
    if not all(options.values()):
        raise ValueError(f"--slurm.options {' '.join(config.slurm.options)}: each must be NAME=VALUE")
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
    except RuntimeError as error:
        raise ValueError(f"--engine slurm: {error}") from error
    executor.update_parameters(
        job_name=f"unimp-{config.folder.absolute().name}",
        time=config.slurm.minutes,
        setup=list(config.slurm.setup),
        additional_parameters=options,
    )
    return Runner(config.folder, executor, [DeviceShare((), {})] * config.jobs, local=False)


def run_cells(needs: Mapping[str, Sequence[str]], runner: Runner) -> list[Result]:
    """Runs all cells that are not done, each after those that it needs (by name), and returns the results in order."""
    results: dict[str, Result] = {}
    order = graphlib.TopologicalSorter(needs)
    order.prepare()

    def following(new: list[Result]) -> list[Callable[[], Result]]:
        again = [one.name for one in new if one.state == "busy"]
        for result in new:
            if result.state == "busy":
                continue
            results[result.name] = result
            runner.say(f"[{len(results)} of {len(needs)}] {' '.join(result)}")
            if result.state == "done":
                order.done(result.name)
        return [functools.partial(runner.run, name) for name in [*order.get_ready(), *again]]

    runner.walk(following)
    return [results.get(name, Result(name, "not run", f"it needs {' and '.join(needs[name])}")) for name in needs]


def summary(folder: Path, results: Sequence[Result]) -> str:
    """Returns the counts, a line for each cell that is not done, and the end of each failed cell's log."""
    counts = {state: sum(one.state == state for one in results) for state in ("done", "failed", "ended", "not run")}
    lines = [f"{len(results)} cells: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)]
    for name, state, text in results:
        if state != "done":
            lines.append(f"{name}: {state}, {text}")
        if state == "failed" and (failed := read_json(folder / name / "failed.json")):
            lines += [f"  $ {failed['command']}", *(f"  {line}" for line in failed["end"])]
    return "\n".join(lines)
