"""A short training run by its real command line, in a process of its own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

from unimp_jax.training.log import read_log


class SoakError(RuntimeError):
    """A process did what it must not do, told with what it printed."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What is started, again and again, in the folder of a run."""

    data: Path
    """Where MovieLens small is prepared."""
    compiled: Path
    """JAX's cache, so that a start is quick."""
    steps: int

    def line(self, run: Path) -> list[str]:
        """`unimp train`: every kind of thing that is saved, often; something is frozen, so that `frozen/` is there."""
        options = {
            "folder": run,
            "data.folder": self.data,
            "loop.steps": self.steps,
            "loop.log-every": 3,
            "loop.save-every": 6,
            "loop.validate-every": 30,
            "training.validation-users": 32,
            "loader.rows": len(os.sched_getaffinity(0)),  # a row a device
        }
        told = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        trains = ["--training.trains", "resampler", "gated", "embeddings"]
        return [sys.executable, "-m", "experiments.cli", "train", "tiny", *told, *trains]

    def environment(self) -> dict[str, str]:
        without = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        return without | {
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled.absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }


class Attempt:
    """One process that trains, and what it has printed."""

    def __init__(self, command: Command, run: Path, printed: Path):
        self._printed, self._since = printed, time.perf_counter()
        with printed.open("wb") as file:
            self.process = subprocess.Popen(
                command.line(run), env=command.environment(), stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since

    def output(self) -> str:
        return self._printed.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")

    def has_begun(self) -> bool:
        """Whether it listens to SIGTERM: what it says of steps is printed after that."""
        return "loss=" in self.output()

    def over(self, limit: float = 600.0) -> int:
        """The exit status, when it is over.

        Raises:
          SoakError: it is not over in so many seconds.
        """
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise SoakError(f"not over after {self.seconds:.0f} s; it printed:\n{self.output()}") from error


def undisturbed(command: Command, run: Path, printed: Path) -> float:
    """Trains in one go, and returns the seconds.

    Raises:
      SoakError: it ended with an error.
    """
    attempt = Attempt(command, run, printed)
    status = attempt.over()
    if status != 0:
        raise SoakError(f"exit status {status} without a signal; it printed:\n{attempt.output()}")
    return attempt.seconds


def logged(run: Path) -> int:
    """The last step in the log."""
    return max((line["step"] for line in read_log(run / "metrics.jsonl")), default=0)


def saved(run: Path) -> int:
    """The last step with a whole checkpoint."""
    folder = run / "checkpoints"
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)
