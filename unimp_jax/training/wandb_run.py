"""Optional logging to Weights & Biases: a run there receives the rows of the log and resumes with training."""

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
"""File in the folder of a run that contains the id of the Weights & Biases run."""


def check_wandb(project: str | None) -> None:
    """Checks that the package is installed if a project is configured.

    Raises:
      ValueError: A project is configured, and the package is missing.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError("loop.wandb: the package wandb is not installed: pip install 'unimp_jax[wandb]'")


class WandbRun:
    """One Weights & Biases run, used by the first of several processes. The package's environment variables
    (WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY) apply. After initialisation, a failure of logging never ends training."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        """Starts or resumes the run.

        Args:
          folder: Folder of the training run, which stores the id, and the package's own files unless it is remote.
          config: The configuration as JSON.

        Raises:
          ValueError: Nobody is logged in, or the run is unreachable.
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
                f"loop.wandb: {reason}; log in with `wandb login`, set WANDB_MODE=offline, or leave out the option"
            ) from error

    def log(self, step: int, row: Mapping[str, float | str]) -> None:
        """Adds a row; for steps that were logged already, such as after a kill, the package keeps the existing row."""
        with errors_as_warnings("wandb: a row was not sent"):
            self._run.log(dict(row), step=step)

    def finish(self, failed: bool) -> None:
        with errors_as_warnings("wandb: the run was not finished"):
            self._run.finish(exit_code=int(failed))


@contextlib.contextmanager
def errors_as_warnings(what: str) -> Iterator[None]:
    """Turns any exception into a warning on standard error, because a failure of logging must not end training."""
    try:
        yield
    except Exception as error:
        print(f"WARNING: {what} ({type(error).__name__}: {error})", file=sys.stderr)
