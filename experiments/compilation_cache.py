"""Keeps compiled programs in the user's cache folder, so that the next command can load them.

JAX reads and writes the entries. A damaged entry or a full disk only costs a warning and a recompilation. With several
processes, the first one writes.
"""

import os
import time
from pathlib import Path

DAYS = 30
"""Age in days at which an entry is removed, so that the folder stays bounded and damaged entries disappear."""
LEAST_SECONDS = 0.0
"""Programs that took at least this many seconds to compile are kept."""


def use_compilation_cache(wanted: bool) -> None:
    """Configures JAX's compilation cache through environment variables; must be called before JAX is imported.

    `JAX_COMPILATION_CACHE_DIR` and JAX's other variables take precedence if they are set. If the folder cannot be
    written, programs are not kept.

    Args:
      wanted: False disables the cache, in this process and in its child processes.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := writable_folder()) is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(LEAST_SECONDS))
        # XLA's own GPU caches would be in the same folder, and an error in them would end the run.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")


def writable_folder() -> Path | None:
    """Returns `$XDG_CACHE_HOME/unimp_jax/xla` or `~/.cache/unimp_jax/xla`, without old entries; None if unusable."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "unimp_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - DAYS * 24 * 60 * 60
        for entry in os.scandir(folder):
            if entry.stat().st_mtime < oldest:
                Path(entry).unlink(missing_ok=True)
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):  # no home, no permission, no space, or another process removed the entry first
        return None
