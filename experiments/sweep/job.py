"""The job of one cell: it runs the commands of `cell.json` and records the outcome.

This module is imported in the job's own process, and therefore imports neither JAX nor the experiments. Each command
runs in a process of its own, whose output goes to `log.txt`.
"""

import concurrent.futures
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from data_pipelines.atomic import write_json
from experiments.lock import locked
from experiments.sweep.devices import DeviceShare

LOG_LINES = 20
"""Number of the last lines of its log that a failed cell records."""


class CellJob:
    """The job that submitit pickles, and calls in a process of its own."""

    def __init__(self, folder: Path, share: DeviceShare):
        self.folder, self.share, self._stopped = folder, share, False
        self._process: subprocess.Popen[bytes] | None = None
        self._over: threading.Event | None = None  # set in the thread of the work once it has begun

    def __call__(self) -> str:
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the sweep too, which stops its jobs by SIGTERM
        if self.share.cores:
            os.sched_setaffinity(0, self.share.cores)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:  # signals interrupt only the main thread
            return thread.submit(self._work).result()

    def _work(self) -> str:
        self._over = threading.Event()
        try:
            return self.run()
        finally:
            self._over.set()

    def checkpoint(self) -> Any:
        """Called by submitit before a time limit or a preemption; submitit queues the returned job."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        if self._over is not None:
            self._over.wait()
        return DelayedSubmission(CellJob(self.folder, self.share))

    def stop(self) -> None:
        """Lets the running command save a checkpoint and end, and starts no other; a second call does nothing."""
        first, self._stopped = not self._stopped, True
        if first and self._process is not None:
            self._process.terminate()

    def run(self) -> str:
        """Runs the commands, unless the cell is done or another process runs them.

        A command whose file exists is skipped, except the last one.

        Returns:
          "done", "failed", "ended" if it was stopped before it was done, or "busy" if another process runs the cell.
        """
        with locked(self.folder / "lock") as lock:
            if lock is None:
                return "busy"
            if is_done(self.folder):
                return "done"
            cell, begin, reason = read_json(self.folder / "cell.json"), time.time(), ""
            (self.folder / "failed.json").unlink(missing_ok=True)
            for command in cell["commands"]:
                if command is cell["commands"][-1] or not (self.folder / command["leaves"]).exists():
                    reason = "stopped" if self._stopped else self._run_command(command, lock)
                if reason:
                    break
            outcome = "done" if not reason else "ended" if self._stopped else "failed"
            seconds = round(time.time() - begin, 3)
            if outcome == "done":
                write_json(self.folder / "done.json", {"hash": cell["hash"], "seconds": seconds})
            elif outcome == "failed":
                failed = {"command": shlex.join(command["words"]), "reason": reason, "seconds": seconds}
                write_json(self.folder / "failed.json", {**failed, "end": last_lines(self.folder / "log.txt")})
            return outcome

    def _run_command(self, command: dict[str, Any], lock: int) -> str:
        """Returns why the command failed, or an empty text. The command inherits the lock: if this process is killed,
        nobody else runs the cell before the command has ended."""
        with (self.folder / "log.txt").open("ab", buffering=0) as log:
            log.write(f"$ {shlex.join(command['words'])}\n".encode())
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            environment = {**os.environ, **self.share.environment}
            try:
                self._process = subprocess.Popen(command["words"], env=environment, pass_fds=(lock,), **streams)
            except OSError as error:
                return str(error)
        if self._stopped:  # while the process started
            self._process.terminate()
        status = self._process.wait()
        if status:
            return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return "" if (self.folder / command["leaves"]).exists() else f"ended early: {command['leaves']} is missing"


def is_done(folder: Path) -> bool:
    """Returns whether the cell is done, with the configuration that its `cell.json` has now."""
    done, cell = read_json(folder / "done.json"), read_json(folder / "cell.json")
    return done is not None and cell is not None and done["hash"] == cell["hash"]


def last_lines(log: Path) -> list[str]:
    """Returns the last lines of a log, with only the last state of a progress bar."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return [line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")][-LOG_LINES:]


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file; None if it does not exist; ValueError if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it") from error
