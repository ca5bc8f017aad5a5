"""For scripts: `python -m experiments.saved FOLDER STEP` exits with 0 if the run has a complete checkpoint STEP."""

import sys
from pathlib import Path

from data_pipelines.object_store import is_remote, make_path

COMMIT = "commit_success.txt"
"""The same as in `unimp_jax.training.object_store`, whose import would take seconds."""


def has_saved(folder: Path, step: str) -> bool:
    """Returns whether the run has a complete checkpoint of a step."""
    checkpoint = folder / "checkpoints" / step
    return (checkpoint / COMMIT).exists() if is_remote(folder) else checkpoint.is_dir()


if __name__ == "__main__":
    sys.exit(not has_saved(make_path(sys.argv[1]), sys.argv[2]))
