"""Copies of object-store folders on this host's disk; each folder is copied once for all processes of the host.

`UNIMP_STAGING` is the folder of the copies (by default in the user's cache) and `UNIMP_STAGING_GB` limits their total
size. The least recently used copies are removed to make room for a new one, unless a process is using them.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from data_pipelines.atomic import atomic_folder
from data_pipelines.disk_cache import FOLDER as CACHE
from data_pipelines.errors import DataError
from data_pipelines.object_store import get_folder, is_remote, whole

GIGABYTES = 200.0
"""The limit of the total size of all copies, unless `UNIMP_STAGING_GB` is set."""
_used: dict[Path, int] = {}
"""The copies that this process uses, and the file descriptors that hold their locks."""


def local_copy(place: Path) -> Path:
    """Returns a local folder itself, or this host's copy of a remote one, which is kept while the process runs.

    Raises:
      DataError: the remote folder is not complete, or there is no room for it.
    """
    if not is_remote(place):
        return place
    content, root = whole(place), staging_place()
    root.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{place} {content['writer']}".encode()).hexdigest()
    copy = root / f"{place.name}-{digest[:16]}"
    if copy not in _used:
        with FileLock(root / "lock"):
            if not copy.exists():
                make_room(root, sum(content["files"].values()), place)
                with atomic_folder(copy) as partial:
                    get_folder(place, partial, content)
            os.utime(copy)
            _used[copy] = os.open(copy, os.O_RDONLY)
            fcntl.flock(_used[copy], fcntl.LOCK_SH)
    return copy


def staging_place() -> Path:
    """Returns the path of the folder of copies, which need not exist; a user without a home has it in the temporary
    folder."""
    try:
        home = Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir())
    cache = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(os.environ.get("UNIMP_STAGING") or Path(cache) / "unimp_jax" / "staged").absolute()


def make_room(root: Path, needed: int, place: Path) -> None:
    """Removes what killed processes left behind, then the least recently used copies until there is enough room; raises
    DataError if there is not."""
    try:
        limit = float(os.environ.get("UNIMP_STAGING_GB", GIGABYTES)) * 10**9
    except ValueError as error:
        raise DataError(f"UNIMP_STAGING_GB is {os.environ['UNIMP_STAGING_GB']!r}; it must be a number") from error
    for left in root.glob(".*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    folders = (path for path in root.iterdir() if path.is_dir() and path.name != CACHE)
    copies = sorted(folders, key=lambda copy: copy.stat().st_mtime)
    held = {copy: sum(file.stat().st_size for file in copy.rglob("*") if file.is_file()) for copy in copies}

    def lacks() -> bool:
        return sum(held.values()) + needed > limit or shutil.disk_usage(root).free < needed

    for copy in copies:
        if lacks() and not is_used(copy):
            shutil.rmtree(copy.rename(root / f".{copy.name}.partial"))  # renamed first: never used while incomplete
            del held[copy]
    if lacks():
        raise DataError(
            f"{root} has no room for {place} of {needed:,} bytes: copies in use take {sum(held.values()):,} "
            f"bytes, the limit of all copies is {limit:,.0f} (UNIMP_STAGING_GB), and the disk (UNIMP_STAGING) has "
            f"{shutil.disk_usage(root).free:,} free"
        )


def is_used(copy: Path) -> bool:
    """Returns whether a process is using the copy."""
    descriptor = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
