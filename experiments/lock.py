"""Allows one process at a time in a folder, across hosts, by the kernel's lock (flock) on a persistent file.

A lock is held by the process that took it and by the processes that inherit its descriptor; it is released when the
last of them ends, for whatever reason. So stale locks need no detection, and a training that outlives the process that
started it is not disturbed. The file names the process that last took the lock.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from data_pipelines.errors import DataError
from data_pipelines.object_store import is_remote
from experiments.lease import leased

PATIENCE = 180
"""Seconds that a file server may need to notice that a machine is gone (NFS 4 allows it 90)."""


@contextlib.contextmanager
def locked(path: Path, *, waits: bool = False) -> Iterator[int | None]:
    """Yields the descriptor that holds the lock, for child processes to inherit; if another process holds it, waits for
    it or, without `waits`, yields None. Raises ValueError if the file system does not support locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            taken = lock_descriptor(descriptor, blocking=waits)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be locked ({error.strerror}); choose a --folder on a file system with file locks"
            ) from error
        if taken:
            _sign(descriptor)
        yield descriptor if taken else None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Prevents other processes from training in `folder` within the context, if its file system supports locks;
    DataError if another one trains there and does not end within `PATIENCE`."""
    path = folder / "training.lock"
    if is_remote(folder):
        with leased(path, PATIENCE):
            yield
        return
    lock = FileLock(path, fallback_to_soft=False, on_acquired=_sign)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            who = holder(path)
            print(
                f"{folder} is in use by another training ({who}); waiting up to {PATIENCE} s for it to end", flush=True
            )
            lock.acquire(PATIENCE, poll_interval=0.2)
    except Timeout as error:
        raise DataError(
            f"{folder} is in use by another training ({holder(path)}); stop it first, or name another folder"
        ) from error
    except OSError as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        print(f"{path} cannot be locked ({error.strerror}); nothing prevents a second training in {folder}")
    try:
        yield
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    """Returns whether the lock was free a moment ago."""
    if not path.exists():
        return True
    with path.open("rb+") as file:
        return lock_descriptor(file.fileno(), blocking=False)


def holder(path: Path) -> str:
    """Describes the process that last took the lock."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _sign(descriptor: int) -> None:
    """Writes the holder of the lock into the file."""
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who).encode(), 0)
