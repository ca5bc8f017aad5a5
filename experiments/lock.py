"""One at a time in a folder, on however many hosts; who it is can be read.

The lock is the kernel's (flock), on a file that stays. It is held by the process that took it and by the processes that
it started; when the last of them is gone, however it ended, the lock is free. So nobody has to judge whether one that
was left behind is stale, and a training that outlives the one who started it is not disturbed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import DataError

PATIENCE = 180
"""Seconds: so long may a file server take to learn that a machine is gone (NFS 4 gives it 90)."""


@contextlib.contextmanager
def locked(path: Path, *, waits: bool = False) -> Iterator[int | None]:
    """The descriptor that holds the lock, for children to inherit; None where it is another's, unless it `waits`.

    Raises:
      ValueError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        taken = _take(descriptor, path, waits)
        if taken:
            who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(who).encode(), 0)
        yield descriptor if taken else None
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, waits: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise ValueError(f"{path} cannot be locked ({error.strerror}); name a --folder where files can be") from error
    return True


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else trains in `folder` meanwhile; where the file system has no locks, nobody watches over that.

    Raises:
      DataError: somebody does, and does not end.
    """
    path, begin, told = folder / "training.lock", time.monotonic(), False
    with contextlib.ExitStack() as held:
        while True:
            try:
                if held.enter_context(locked(path)) is not None:
                    break
            except ValueError as error:
                print(f"{error}; nobody watches that {folder} is trained in once")
                break
            held.close()
            if time.monotonic() >= begin + PATIENCE:
                raise DataError(f"{folder} is trained in by {holder(path)}; end that one first, or name another folder")
            if not told:
                print(f"{folder} is trained in by {holder(path)}: waiting up to {PATIENCE} s for its end", flush=True)
            told = True
            time.sleep(0.2)
        yield


def is_free(path: Path) -> bool:
    """Whether nobody held the lock a moment ago."""
    if not path.exists():
        return True
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def holder(path: Path) -> str:
    """Who took the lock last, in words."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
