"""Does what one cell's `cell.json` says: `python -m experiments.sweep.worker FOLDER`.

Commands run one after the other in processes of their own; what they print goes to `log.txt` in the cell's folder. A
cell that is done is not touched again, one that was killed goes on, and one that another process is at is left to it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.lock import locked
from experiments.sweep.asked import AskedToEnd
from experiments.sweep.files import note, read_json, write_json

DONE, FAILED = 0, 1
BUSY = 75
"""The exit status where another process is at the cell: EX_TEMPFAIL."""
ENDED = 128 + signal.SIGTERM
"""Where it was asked to end; the cell can go on."""
TOLD_LINES = 20
"""So many of the last lines of a failed cell's log are recorded."""


class Worker:
    """The work at one cell; `end` may be called from a signal's handler, and from another thread."""

    def __init__(self, folder: Path):
        """
        Raises:
          ValueError: the folder holds no cell.
        """
        told = read_json(folder / "cell.json")
        if told is None:
            raise ValueError(f"{folder} holds no cell: it has no cell.json")
        self.folder, self._told = folder, told
        self._asked, self._child = False, 0

    def run(self) -> int:
        """DONE, FAILED, BUSY or ENDED."""
        with locked(self.folder / "lock") as lock:
            if lock is None:
                return BUSY
            if is_done(self.folder):
                return DONE
            self._note("starts")
            (self.folder / "failed.json").unlink(missing_ok=True)
            start = time.time()
            try:
                outcome, failure = self._commands(lock)
            except OSError as error:
                outcome, failure = FAILED, {"command": "", "reason": str(error)}
            told = {"seconds": round(time.time() - start, 3)}
            if outcome == FAILED:
                end = last_lines(self.folder / "log.txt")
                write_json(self.folder / "failed.json", {**failure, **told, "end": end})
            elif outcome == DONE:
                write_json(self.folder / "done.json", {"hash": self._told["hash"], **told})
            self._note({DONE: "done", FAILED: "failed", ENDED: "ended"}[outcome], **told)
            return outcome

    def end(self) -> None:
        """Asks the command that runs to end, and starts no other."""
        self._asked = True
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)

    def _commands(self, lock: int) -> tuple[int, dict[str, str]]:
        """(DONE, FAILED or ENDED, which of the commands failed and why)."""
        *first, last = self._told["commands"]
        for command in [*(one for one in first if not (self.folder / one["leaves"]).exists()), last]:
            if self._asked:
                return ENDED, {}
            status = self._command(command["words"], lock)
            there = (self.folder / command["leaves"]).exists()
            if status == 0 and there:
                continue
            if self._asked:
                return ENDED, {}
            return FAILED, {"command": shlex.join(command["words"]), "reason": why(status, command["leaves"])}
        return DONE, {}

    def _command(self, words: list[str], lock: int) -> int:
        with (self.folder / "log.txt").open("ab") as log:
            log.write(f"$ {shlex.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)
            )
            self._child = process.pid
            if self._asked:  # before it was known whom to ask
                self.end()
            try:
                return process.wait()
            finally:
                self._child = 0

    def _note(self, event: str, **more: Any) -> None:
        note(self.folder.parent / "journal.jsonl", self.folder.name, event, **more)


def why(status: int, leaves: str) -> str:
    """A command failed, in words."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status}" if status else f"ended early: {leaves} is not there"


def is_done(folder: Path) -> bool:
    done, told = read_json(folder / "done.json"), read_json(folder / "cell.json")
    return done is not None and told is not None and done["hash"] == told["hash"]


def last_lines(log: Path) -> list[str]:
    """Of a progress bar, what it last showed."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")]
    return lines[-TOLD_LINES:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cores", help="numbers of those to stay on, with commas")
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, map(int, arguments.cores.split(",")))
    worker = Worker(arguments.folder)
    with AskedToEnd(worker.end):
        return worker.run()


if __name__ == "__main__":
    sys.exit(main())
