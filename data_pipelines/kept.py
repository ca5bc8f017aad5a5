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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data_pipelines.atomic import atomic_folder

T = TypeVar("T")
FOLDER = "kept"
VERSION = 1
MADE_OF, VALUE = "made_of.json", "value.json"


@dataclasses.dataclass(frozen=True)
class Kept:
    """Where things are kept, and what determines all of them.

    Attributes:
      places: folders; the first that can be written takes what is new. None: nothing is kept.
      made_of: what JSON can say.
    """

    places: tuple[Path, ...] = ()
    made_of: tuple[Any, ...] = (VERSION,)

    def of(self, *made_of: Any) -> Kept:
        """The same places, for what is determined by `made_of` too."""
        return dataclasses.replace(self, made_of=(*self.made_of, *made_of))

    def get(self, write: Callable[[Path], None], read: Callable[[Path], T]) -> T | None:
        """What is kept, after it was made where it was not; None where there is no place to keep it.

        Args:
          write: makes it in an empty folder; called again where a place turns out to be full.
          read: reads it from there; an OSError or ValueError says that it is damaged.
        """
        described = json.dumps(self.made_of, sort_keys=True)
        name = hashlib.sha256(described.encode()).hexdigest()[:32]

        def known(place: Path) -> T:
            if (place / name / MADE_OF).read_text(encoding="utf-8") != described:
                raise ValueError(f"{place / name} is of something else")
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
                    (partial / MADE_OF).write_text(described, encoding="utf-8")
                return known(place)
        return None

    def value(self, make: Callable[[], Any]) -> Any:
        """What JSON can say, kept where there is a place; it is made once at most."""
        make = functools.cache(make)

        def write(folder: Path) -> None:
            (folder / VALUE).write_text(json.dumps(make()), encoding="utf-8")

        found = self.get(write, lambda folder: [json.loads((folder / VALUE).read_bytes())])
        return make() if found is None else found[0]


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
