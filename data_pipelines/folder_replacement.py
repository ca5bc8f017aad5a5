"""Replaces a folder of records by a new one, whole, and deletes nothing that others made.

What is made lies in a folder of a unique name, `.NAME.….partial`, in which `LOCK` says for which name. It is locked as
long as its process lives, so that one that nobody holds was left behind by a kill, and is cleaned up.
"""

from __future__ import annotations

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
"""Stands in a folder that was made here."""
AT_WORKING_DIRECTORY, EXCHANGE = -100, 2  # of Linux


def check_replaceable(place: Path, parts: Collection[str], source_dir: Path | None) -> None:
    """
    Args:
      parts: what may stand in a folder that is replaced, beside `MADE` and dotfiles.

    Raises:
      DataError: something stands there that was not made here, or that the source is part of.
    """
    remedy = "nothing was changed; give the records another --name, or another --folder"
    if source_dir is not None:
        source = source_dir.resolve()
        if place.resolve() in (source, *source.parents):
            raise DataError(f"{place} is where the source's own files are: {remedy}")
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        raise DataError(f"{place} is {'a link' if place.is_symlink() else 'no folder'}: {remedy}")
    there = sorted(name for name in os.listdir(place) if not name.startswith("."))
    if not os.path.isfile(place / MADE):
        holds = f"it holds {', '.join(there[:3])}{' …' * (len(there) > 3)}" if there else "it is empty"
        raise DataError(f"{place} was not made by `unimp prepare` ({holds}, and no {MADE}): {remedy}")
    others = [name for name in there if name not in (MADE, *parts)]
    if others:
        raise DataError(f"{place} also holds {', '.join(others[:3])}, which `unimp prepare` did not make: {remedy}")


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """An empty folder beside `place`, for `replace_folder`; it is gone at the end.

    Raises:
      DataError: another process makes the same folder.
      OSError: it cannot be made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(place)
    work = Path(tempfile.mkdtemp(".partial", f".{place.name}.", place.parent))
    try:
        with (work / LOCK).open("x", encoding="utf-8") as lock:
            with contextlib.suppress(OSError):  # where there are no locks, nobody watches
                lock_descriptor(lock.fileno())
            lock.write(place.name)
            lock.flush()
            (work / NEW).mkdir()
            yield work / NEW
    finally:
        _remove(work, place)


def _clean_up(place: Path) -> None:
    """Removes what killed processes left of `place`, after the earlier folder is back where they had taken it away."""
    for left in place.parent.glob(".*.partial"):
        try:
            with (left / LOCK).open("r+", encoding="utf-8") as lock:
                if lock.read() != place.name:
                    continue
                if lock_descriptor(lock.fileno(), blocking=False):
                    _remove(left, place)
                    continue
        except (OSError, ValueError):  # of somebody else, or it cannot be locked
            continue
        raise DataError(f"{place} is being prepared by another process: wait for it, or stop it")


def _remove(work: Path, place: Path) -> None:
    """Removes what lies in `work`, after the earlier folder is back in its place; the mark that it is ours last."""
    if (work / OLD).is_dir() and not os.path.lexists(place):
        os.rename(work / OLD, place)
    for made in (NEW, OLD):
        shutil.rmtree(work / made, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Puts a folder that was made in a `temporary_folder` where it belongs, instead of an earlier one.

    There is the old or the new one at any moment; where the file system cannot exchange two folders at once, there is
    none for a moment, and if that is the last, the next `temporary_folder` puts the old one back.
    """
    if not place.exists():
        os.rename(new, place)
    elif not _exchange(new, place):
        os.rename(place, next(folder for folder in new.parents if folder.parent == place.parent) / OLD)
        os.rename(new, place)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the system could: Linux, on most file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = AT_WORKING_DIRECTORY, os.fsencode(one), AT_WORKING_DIRECTORY, os.fsencode(other)
    return rename is not None and rename(*paths, EXCHANGE) == 0
