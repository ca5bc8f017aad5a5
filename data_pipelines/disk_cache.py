"""Results computed once per catalogue and cached on disk, for all processes of a host and for later starts.

Each result is a folder named by a digest of everything that determines it. It appears whole or not at all; one process
creates it while the others wait; a damaged or mismatched one is created anew. The cache may be deleted at any time; the
entries that were not used for longest are deleted when there are more than `MOST`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from filelock import FileLock

from data_pipelines.atomic import atomic_folder

T = TypeVar("T")
FOLDER = "cache"
VERSION = 1
"""To be incremented when the same texts give different tokens, or the same records different texts."""
ABOUT, VALUE = "about.json", "value.json"
MOST = 32
"""The largest number of entries in a folder: those of about eight tokenizers and prompt configurations."""


@dataclasses.dataclass(frozen=True)
class DiskCache:
    """The folders of a cache, and the key that all its entries share.

    Attributes:
      places: folders; the first writable one takes new entries. Without folders, nothing is cached.
      made_of: what determines the entries, as JSON values.
    """

    places: tuple[Path, ...] = ()
    made_of: tuple[Any, ...] = (VERSION,)

    def of(self, *made_of: Any) -> Self:
        """Returns a cache in the same folders, with `made_of` added to the key."""
        return dataclasses.replace(self, made_of=(*self.made_of, *made_of))

    def get(self, write: Callable[[Path], None], read: Callable[[Path], T]) -> T | None:
        """Returns the cached entry, creating it if necessary; None if there is no place to cache it.

        Args:
          write: creates the entry in an empty folder; called again for the next place if one turns out to be full.
          read: reads the entry from its folder; an OSError or ValueError means that it is damaged.
        """
        name = hashlib.sha256(json.dumps(self.made_of).encode()).hexdigest()[:32]

        def about(folder: Path) -> str:
            return json.dumps({"made_of": self.made_of, "checksums": checksums(folder)})

        def known(place: Path) -> T:
            if (place / name / ABOUT).read_text(encoding="utf-8") != about(place / name):
                raise ValueError(f"{place / name} is damaged or belongs to other data")
            with contextlib.suppress(OSError):  # a folder that is only readable
                os.utime(place / name)
            return read(place / name)

        for place in self.places:
            with contextlib.suppress(OSError, ValueError):
                return known(place)
        for place in self.places:
            with contextlib.suppress(OSError), FileLock(place / f".{name}.lock", fallback_to_soft=False):
                with contextlib.suppress(OSError, ValueError):  # created by another process in the meantime
                    return known(place)
                with atomic_folder(place / name, replaces=True) as partial:
                    write(partial)
                    (partial / ABOUT).write_text(about(partial), encoding="utf-8")
                delete_oldest(place)
                return known(place)
        return None

    def value(self, make: Callable[[], Any]) -> Any:
        """Returns a JSON value, cached if there is a place; `make` is called at most once."""
        make = functools.cache(make)

        def write(folder: Path) -> None:
            (folder / VALUE).write_text(json.dumps(make()), encoding="utf-8")

        found = self.get(write, lambda folder: [json.loads((folder / VALUE).read_bytes())])
        return make() if found is None else found[0]


def delete_oldest(place: Path) -> None:
    """Deletes the least recently used entries beyond `MOST`. Processes that have mapped their files can go on."""
    used = {}
    for path in place.iterdir():
        with contextlib.suppress(OSError):  # deleted by another process in the meantime
            if path.is_dir() and not path.name.startswith("."):
                used[path] = path.stat().st_mtime_ns
    for path in sorted(used, key=used.__getitem__)[: max(len(used) - MOST, 0)]:
        shutil.rmtree(path, ignore_errors=True)


def checksums(folder: Path) -> dict[str, int]:
    """Returns the CRC-32 of each file except `ABOUT`, by name; takes about a second for 3 GB."""
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != ABOUT:
            with path.open("rb") as file:
                parts = iter(functools.partial(file.read, 2**20), b"")
                sums[path.name] = functools.reduce(lambda known, part: zlib.crc32(part, known), parts, 0)
    return sums
