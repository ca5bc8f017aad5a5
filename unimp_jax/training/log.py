"""The log of a run: a JSON Lines file, TensorBoard, and a progress bar."""

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.atomic import atomic_file
from data_pipelines.object_store import is_remote, put_file
from unimp_jax.training.wandb_run import WandbRun, errors_as_warnings


class RunLog(contextlib.AbstractContextManager["RunLog"]):
    """The log of one run, continued at a step; rows after that step are removed because they will be written again."""

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int,
        writes: bool = True,
        began: float | None = None,
        wandb: WandbRun | None = None,
    ):
        """Opens the log.

        Args:
          folder: Receives `metrics.jsonl` and `tensorboard/`. In an object store, they are written to a local folder
            and uploaded at each `flush`.
          step: The run continues after this step.
          steps: The last step.
          writes: False on all processes but one.
          began: Time at which the run was first started, in seconds since 1970; None: now.
          wandb: Receives all rows as well, and is finished with the log.
        """
        self._began = time.time() if began is None else began
        self._writes, self.folder, self._store, self._wandb = writes, folder, folder, wandb
        self._sent: dict[Path, int] = {}
        if is_remote(folder):
            self._disk = tempfile.TemporaryDirectory()
            self.folder = Path(self._disk.name)
        self.path = self.folder / "metrics.jsonl"
        if not writes:
            return
        kept = [line for line in read_log(folder / "metrics.jsonl") if line["step"] <= step]
        with atomic_file(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        trained = [line for line in kept if line["kind"] == "train"]
        self._trained, self._productive = step, productive_seconds(trained)
        self._file, self._unwritten = self.path.open("ab", buffering=0), b""
        self._board = Board(self.folder / "tensorboard", purge_step=step + 1)
        self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0)

    def write(self, step: int, kind: str, metrics: Mapping[str, float | str]) -> None:
        """Writes one row of metrics, except NaNs, with any text values.

        A row of training steps also gets the run's `goodput`: the share of the time since the run's first start that
        was spent computing steps which were not lost to interruptions.
        """
        if not self._writes:
            return
        if "step_seconds" in metrics:
            self._productive += (step - self._trained) * float(metrics["step_seconds"])
            self._trained = step
            metrics = {**metrics, "goodput": min(self._productive / max(time.time() - self._began, 1e-9), 1.0)}
        words = {name: value for name, value in metrics.items() if isinstance(value, str)}
        numbers = {name: float(value) for name, value in metrics.items() if name not in words}
        numbers = {name: value for name, value in numbers.items() if not math.isnan(value)}
        self._unwritten += f"{json.dumps({'step': step, 'kind': kind, **numbers, **words})}\n".encode()
        self._write_rows()
        with errors_as_warnings("TensorBoard: a row was not written"):
            self._board.add(step, {f"{kind}/{name}": value for name, value in (numbers | words).items()})
        if self._wandb is not None:
            self._wandb.log(step, {f"{kind}/{name}": value for name, value in (numbers | words).items()})

    def _write_rows(self) -> None:
        """Writes the rows that are not on disk yet, as far as it is possible; the rest is written with the next row."""
        with errors_as_warnings(f"{self.path}: rows of the log are not on disk yet"):
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def has(self, step: int, kind: str) -> bool:
        """Returns whether there is a row of this kind for a step."""
        return any(row["step"] == step and row["kind"] == kind for row in read_log(self.path))

    def flush(self) -> None:
        """Flushes TensorBoard's writer to disk, and uploads what has changed to the object store."""
        if self._writes:
            with errors_as_warnings("TensorBoard: rows were not written"):
                self._board.flush()
        self._send()

    def _send(self) -> None:
        if not is_remote(self._store):
            return
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and self._sent.get(file) != (changed := file.stat().st_mtime_ns):
                with errors_as_warnings("the log was not sent"):  # it is with the next rows
                    put_file(file, self._store / file.relative_to(self.folder).as_posix())
                    self._sent[file] = changed

    def progress(self, step: int, shown: dict[str, str]) -> None:
        """Advances the progress bar to a step and shows some values beside it."""
        if self._writes:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writes:
            self._bar.close()
            self._write_rows()
            self._file.close()
            with errors_as_warnings("TensorBoard: rows were not written"):
                self._board.flush()
        if self._wandb is not None:
            self._wandb.finish(failed=kind is not None)
        self._send()


class Board:
    """Writes TensorBoard's events in the thread of the caller.

    The thread of tensorboardX's `SummaryWriter` ends with the first error, such as a full disk; its queue then fills
    up, and training would wait for room in it without an end.
    """

    def __init__(self, folder: Path, purge_step: int):
        """Creates the folder, and a file in which rows replace those of earlier files from `purge_step` on."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._prefix, self._writer = str(folder / "events"), None
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, row: Mapping[str, float | str]) -> None:
        """Adds the numbers and texts of a row."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar, text

        parts = [text(name, x) if isinstance(x, str) else scalar(name, x) for name, x in row.items()]
        self._write(Event(step=step, summary=Summary(value=[value for part in parts for value in part.value])))

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _write(self, event: Any) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        event.wall_time = time.time()
        writer = self._writer or EventsWriter(self._prefix, f".{event.step}")
        self._writer = None  # after an error, the next row begins another file: nothing after a partial event is read
        writer.write_event(event)
        self._writer = writer


def productive_seconds(trained: Sequence[Mapping[str, Any]]) -> float:
    """Returns the total duration of the steps in some rows, without the time between rows."""
    steps = np.diff([line["step"] for line in trained], prepend=0)
    return float(sum(steps * [line.get("step_seconds", 0.0) for line in trained]))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a log up to the first damaged line, left by a killed process or a crashed machine."""
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            read = json.loads(line)
        except ValueError:  # not JSON or not text
            break
        if not isinstance(read, dict) or not {"step", "kind"} <= read.keys():
            break
        lines.append(read)
    return lines
