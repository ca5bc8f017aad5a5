"""Compiled programs are kept in the user's cache folder, so that the next command loads them.

JAX reads and writes the entries. A damaged one, or a full disk, costs it a warning and the time to compile. Of several
processes the first one writes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

DAYS = 30
"""After so many days an entry is removed: the folder does not grow for ever, and damaged entries go."""
LEAST_SECONDS = 0.0
"""Programs that took at least this long to compile are kept."""


def use_compilation_cache(wanted: bool) -> None:
    """Tells JAX, by its environment variables, where to keep compiled programs; to be called before JAX is imported.

    `JAX_COMPILATION_CACHE_DIR` and JAX's other variables come first where they are set. Where the folder cannot be
    written, programs are not kept.

    Args:
      wanted: False: nothing is kept or loaded, here and in processes that this one starts.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := writable_folder()) is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(LEAST_SECONDS))
        # XLA's own caches for GPUs lie in the same folder, and an error of theirs would end the run.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")


def writable_folder() -> Path | None:
    """`$XDG_CACHE_HOME/unimp_jax/xla`, or the same in `~/.cache`, without old entries; None where it cannot be used."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "unimp_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - DAYS * 24 * 60 * 60
        for entry in os.scandir(folder):
            if entry.stat().st_mtime < oldest:
                Path(entry).unlink(missing_ok=True)
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):  # no home, no permission, no space; or another process removed the entry first
        return None
