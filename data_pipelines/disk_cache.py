"""What is computed of a catalogue once and kept on disk: for all processes of a host, and for later starts.

Each thing is a folder of its own, named by the digest of all that determines it. It appears whole or not at all, one
process makes it while the others wait, and what is damaged, or of something else, is made anew. All of it may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data_pipelines.atomic import atomic_folder

T = TypeVar("T")
FOLDER = "cache"
VERSION = 1
"""To be raised where the same texts become other tokens, or the same records other texts."""
ABOUT, VALUE = "about.json", "value.json"


@dataclasses.dataclass(frozen=True)
class DiskCache:
    """Where things are kept, and what determines all of them.

    Attributes:
      places: folders; the first that can be written takes what is new. Where there are none, nothing is kept.
      made_of: what JSON can say.
    """

    places: tuple[Path, ...] = ()
    made_of: tuple[Any, ...] = (VERSION,)

    def of(self, *made_of: Any) -> DiskCache:
        """The same places, for what is determined by `made_of` too."""
        return dataclasses.replace(self, made_of=(*self.made_of, *made_of))

    def get(self, write: Callable[[Path], None], read: Callable[[Path], T]) -> T | None:
        """What is kept, after it was made where it was not; None where there is no place to keep it.

        Args:
          write: makes it in an empty folder; called again where a place turns out to be full.
          read: reads it from there; an OSError or ValueError says that it is damaged.
        """
        name = hashlib.sha256(json.dumps(self.made_of).encode()).hexdigest()[:32]

        def about(folder: Path) -> str:
            return json.dumps({"made_of": self.made_of, "checksums": checksums(folder)})

        def known(place: Path) -> T:
            if (place / name / ABOUT).read_text(encoding="utf-8") != about(place / name):
                raise ValueError(f"{place / name} is damaged, or of something else")
            return read(place / name)

        for place in self.places:
            with contextlib.suppress(OSError, ValueError):
                return known(place)
        for place in self.places:
            with contextlib.suppress(OSError), alone(place, name):
                with contextlib.suppress(OSError, ValueError):  # made by another process meanwhile
                    return known(place)
                with atomic_folder(place / name, replaces=True) as partial:
                    write(partial)
                    (partial / ABOUT).write_text(about(partial), encoding="utf-8")
                return known(place)
        return None

    def value(self, make: Callable[[], Any]) -> Any:
        """What JSON can say, kept where there is a place; it is made once at most."""
        make = functools.cache(make)

        def write(folder: Path) -> None:
            (folder / VALUE).write_text(json.dumps(make()), encoding="utf-8")

        found = self.get(write, lambda folder: [json.loads((folder / VALUE).read_bytes())])
        return make() if found is None else found[0]


def checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of each file but `ABOUT`, by name; 3 GB a second."""
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != ABOUT:
            with path.open("rb") as file:
                parts = iter(functools.partial(file.read, 2**20), b"")
                sums[path.name] = functools.reduce(lambda known, part: zlib.crc32(part, known), parts, 0)
    return sums


@contextlib.contextmanager
def alone(place: Path, name: str) -> Iterator[None]:
    """Holds the lock of a name; another process that wants it waits. A killed process holds none.

    Raises:
      OSError: the place cannot be written, or has no locks.
    """
    place.mkdir(parents=True, exist_ok=True)
    with (place / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
