"""Weights & Biases beside TensorBoard: a run there gets the rows of the log, and goes on where training goes on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.atomic import write_json
from data_pipelines.object_store import is_remote

FILE = "wandb.json"
"""In the folder of a run: the id of the run at Weights & Biases."""


def check_wandb(project: str | None) -> None:
    """
    Raises:
      ValueError: a project is asked for, and the package is missing.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError("loop.wandb: the package wandb is not installed; install it by pip install 'unimp_jax[wandb]'")


class WandbRun:
    """One run at Weights & Biases, for the first of several processes; the package's own variables of the environment
    (WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY) say the rest. Once training goes on, no failure of it ends training."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        """
        Args:
          folder: of the run, which keeps the id there, and the package's own files unless it is remote.
          config: as JSON.

        Raises:
          ValueError: nobody is logged in, or the run cannot be reached there.
        """
        import wandb

        if not (folder / FILE).exists():
            write_json(folder / FILE, {"id": secrets.token_hex(8)})
        try:
            self._run = wandb.init(
                project=project,
                id=json.loads((folder / FILE).read_bytes())["id"],
                resume="allow",
                name=folder.name,
                config=config,
                dir=tempfile.gettempdir() if is_remote(folder) else str(folder),
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"loop.wandb: {reason}; log in by `wandb login`, or set WANDB_MODE=offline, or leave the option out"
            ) from error

    def log(self, step: int, row: Mapping[str, float | str]) -> None:
        """Adds a row; of steps that are there already, as after a kill, the package keeps the row that it has."""
        with _told("a row was not sent"):
            self._run.log(dict(row), step=step)

    def finish(self, failed: bool) -> None:
        with _told("the run was not finished"):
            self._run.finish(exit_code=int(failed))


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(f"WARNING: wandb: {what} ({type(error).__name__}: {error})", file=sys.stderr)
