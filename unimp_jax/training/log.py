"""The log of a run: a file of JSON lines, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from data_pipelines.atomic import atomic_file


class RunLog:
    """The log of one run, continued at a step: what was logged after that step is removed, because it comes again."""

    def __init__(self, folder: Path, *, step: int, steps: int, writes: bool = True):
        """
        Args:
          folder: gets `metrics.jsonl` and `tensorboard/`.
          step: the run goes on after this step.
          steps: the last step.
          writes: False on all processes but one.
        """
        self._writes, self.folder = writes, folder
        self.path = folder / "metrics.jsonl"
        if not writes:
            return
        from tensorboardX import SummaryWriter

        kept = [line for line in read_log(self.path) if line["step"] <= step]
        with atomic_file(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0)

    def write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        """Writes one row of metrics, without those that are NaN."""
        if not self._writes:
            return
        numbers = {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
        self._file.write(json.dumps({"step": step, "kind": kind, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Writes to disk what TensorBoard's writer still holds in memory."""
        if self._writes:
            self._board.flush()

    def progress(self, step: int, shown: dict[str, str]) -> None:
        """Moves the progress bar to a step and shows some values beside it."""
        if self._writes:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._bar.close()
            self._file.close()
            self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a log, up to the first damaged line, which a killed process or a crashed machine left."""
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            read = json.loads(line)
        except ValueError:  # no JSON, or no text
            break
        if not isinstance(read, dict) or not {"step", "kind"} <= read.keys():
            break
        lines.append(read)
    return lines
