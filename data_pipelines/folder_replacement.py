"""Replaces a folder of records by a new one as a whole, without deleting anything made by others.

The new folder is built in a folder with a unique name, `.NAME.….partial`, in which the file `LOCK` holds the name of
the folder to replace. The file is locked while its process lives; an unlocked one was left behind by a killed process,
and is cleaned up.
"""

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import lock_descriptor

from data_pipelines.errors import DataError

LOCK = "made by unimp prepare"
NEW, OLD = "new", "old"
MADE = "prepared.json"
"""The file that marks a folder as made by `unimp prepare`."""
AT_WORKING_DIRECTORY, EXCHANGE = -100, 2  # Linux constants


def check_replaceable(place: Path, parts: Collection[str], source_dir: Path | None) -> None:
    """Raises DataError if `place` may not be replaced by a new folder of records: it was not made by `unimp prepare`,
    holds anything but `parts`, `MADE` and dotfiles, or contains the source's own files."""
    remedy = "nothing was changed; choose another --name or --folder for the records"
    if source_dir is not None:
        source = source_dir.resolve()
        if place.resolve() in (source, *source.parents):
            raise DataError(f"{place} contains the source's own files: {remedy}")
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        raise DataError(f"{place} is {'a link' if place.is_symlink() else 'not a folder'}: {remedy}")
    names = sorted(name for name in os.listdir(place) if not name.startswith("."))
    if not os.path.isfile(place / MADE):
        holds = f"it contains {', '.join(names[:3])}{' …' * (len(names) > 3)}" if names else "it is empty"
        raise DataError(f"{place} was not made by `unimp prepare` ({holds}, and there is no {MADE}): {remedy}")
    others = [name for name in names if name not in (MADE, *parts)]
    if others:
        raise DataError(f"{place} also contains {', '.join(others[:3])}, which `unimp prepare` did not make: {remedy}")


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """Yields an empty folder beside `place`, for `replace_folder`; it is removed when the context ends. Raises
    DataError if another process is preparing the same folder, and OSError if the folder cannot be created."""
    place.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(place)
    work = Path(tempfile.mkdtemp(".partial", f".{place.name}.", place.parent))
    try:
        with (work / LOCK).open("x", encoding="utf-8") as lock:
            with contextlib.suppress(OSError):  # file systems without locks are not protected
                lock_descriptor(lock.fileno())
            lock.write(place.name)
            lock.flush()
            (work / NEW).mkdir()
            yield work / NEW
    finally:
        _remove(work, place)


def _clean_up(place: Path) -> None:
    """Removes what killed processes left of `place`, after restoring an earlier folder that they had moved away."""
    for left in place.parent.glob(".*.partial"):
        try:
            with (left / LOCK).open("r+", encoding="utf-8") as lock:
                if lock.read() != place.name:
                    continue
                if lock_descriptor(lock.fileno(), blocking=False):
                    _remove(left, place)
                    continue
        except (OSError, ValueError):  # belongs to another program, or cannot be locked
            continue
        raise DataError(f"{place} is being prepared by another process; wait until it ends, or stop it")


def _remove(work: Path, place: Path) -> None:
    """Restores the earlier folder to its place, then removes `work`; the lock file, which marks it, goes last."""
    if (work / OLD).is_dir() and not os.path.lexists(place):
        os.rename(work / OLD, place)
    for made in (NEW, OLD):
        shutil.rmtree(work / made, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Moves a folder made in a `temporary_folder` to `place`, replacing any earlier one. Either the old or the new
    folder is there at any moment. If the file system cannot exchange two folders atomically, there is none for a
    moment; if the process is killed then, the next `temporary_folder` restores the old one."""
    if not place.exists():
        os.rename(new, place)
    elif not _exchange(new, place):
        os.rename(place, next(folder for folder in new.parents if folder.parent == place.parent) / OLD)
        os.rename(new, place)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders atomically and returns whether that is supported: on Linux, by most file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = AT_WORKING_DIRECTORY, os.fsencode(one), AT_WORKING_DIRECTORY, os.fsencode(other)
    return rename is not None and rename(*paths, EXCHANGE) == 0
