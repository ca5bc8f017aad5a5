"""One-line messages for errors that are not the program's fault: user errors, a full disk, too little memory."""

import errno
import select
import sys

from data_pipelines.object_store import URLError
from experiments.terminal import clean, fitted

SHOWN = 300
"""Number of characters shown of a path or of an accelerator's message."""
LINE = 2000
"""Maximum width of the line, because ids of the data that it names may have any length."""
REMEDIES = {
    errno.ENOENT: "it does not exist, or its parent folder does not",
    errno.ENOTDIR: "a parent of the path is a file, not a folder; name another path",
    errno.EISDIR: "it is a folder; a file is needed",
    errno.EEXIST: "it already exists and is not what is needed; name another path",
    errno.ENOTEMPTY: "the folder is not empty; name another path",
    errno.EACCES: "permission denied; name another path, or change the permissions",
    errno.EPERM: "not permitted; name another path",
    errno.EROFS: "the file system is read-only; name another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "the path is a circle of symbolic links",
    errno.ENOSPC: "no space is left on the disk; free some space, or name a folder on another disk",
    errno.EDQUOT: "the disk quota is exceeded; free some space, or name a folder on another disk",
    errno.EMFILE: "too many files are open; raise the limit, for example with `ulimit -n 65536`",
    errno.EIO: "the disk cannot be read or written there (input/output error)",
    errno.ESTALE: "stale file handle of a network file system; the same command continues once it is mounted again",
}
STORES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google")
"""Packages that access object stores; many of their exceptions are not an `OSError`."""
MEMORY = (
    "out of memory ({}); reduce memory with a smaller --loader.batch-size, --training.accumulate 2 or more, "
    "--model.remat full, a larger --mesh.fsdp, or more devices"
)


def error_message(error: Exception) -> str | None:
    """Returns one line about an error; None if the program is at fault, since its traceback is then more helpful."""
    if isinstance(error, OSError):
        return fitted(clean(system_error_message(error)), LINE)
    if isinstance(error, ValueError | URLError):
        return fitted(clean(str(error)), LINE) or type(error).__name__
    if type(error).__module__.partition(".")[0] in STORES:
        return fitted(clean(f"object store: {error}"), LINE)
    from jax.errors import JaxRuntimeError

    from unimp_jax.training.checkpoint import CheckpointError
    from unimp_jax.training.guard import TrainingError

    if isinstance(error, MemoryError) or (isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
        return MEMORY.format(clean(str(error))[:SHOWN] or "of this machine")
    if isinstance(error, CheckpointError | TrainingError):
        return fitted(clean(str(error)), LINE) or type(error).__name__
    return None


def system_error_message(error: OSError) -> str:
    """Describes what the operating system refused, where, and what to do about it."""
    reason = REMEDIES.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    names = [str(name)[:SHOWN] for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names)}: {reason}" if names else reason


def stdout_is_closed() -> bool:
    """Returns whether standard output is a pipe whose reader, such as `head`, has closed it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # not a file
        return False
