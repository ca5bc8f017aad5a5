"""Parses times: the unit is inferred from their size, and values that cannot be times of records are refused."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import polars as pl

from data_pipelines.sources.checks import SAMPLE, BadField, Faults, field
from data_pipelines.sources.json_files import read_objects

EARLIEST = 631_152_000
"""1990-01-01, in seconds since 1970."""
YEAR = 366 * 24 * 60 * 60
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


def latest() -> int:
    """Returns the time one year from now, in seconds since 1970."""
    return int(time.time()) + YEAR


class Clock:
    """Converts the times of a file to seconds since 1970. The unit of the file, a name in `UNITS`, is the one in which
    most of its first times lie between 1990 and next year. No time fits two units."""

    def __init__(self, times: Iterable[Any], *, counted: bool = False):
        """Infers the unit from the first times of the file, including invalid ones. If none of these is a time in any
        unit and times may be `counted`, small numbers are accepted unchanged, as counters that only give the order."""
        self._latest = latest()
        counts = Counter(filter(None, map(self._unit_of, times)))
        self.unit = counts.most_common(1)[0][0] if counts else "seconds"
        self._size = UNITS[self.unit]
        self._least, self._most = EARLIEST * self._size, self._latest * self._size
        if counted and not counts:
            self._least, self._most = 0, EARLIEST

    @classmethod
    def of(cls, path: Path, name: str, *, counted: bool = False) -> Self:
        """Returns the clock of a file with a JSON object per line, from the field `name` at any depth of a record."""
        found = read_objects(path, Faults("skip"), lambda record: list(_values_of(record, name)))
        return cls((time for _, times in itertools.islice(found, SAMPLE) for time in times), counted=counted)

    def _unit_of(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return next((unit for unit, size in UNITS.items() if EARLIEST * size <= value <= self._latest * size), None)

    def seconds(self, record: dict[str, Any], name: str, default: int | None = None) -> int:
        """Returns the time of a record, or `default` if it lacks the field (None: it is required); raises BadField if
        it is missing, not a whole number, before 1990 or after next year, or in another unit than most."""
        if name not in record and default is not None:
            return default
        value = field(record, name, int)
        if self._least <= value <= self._most:
            return value // self._size
        raise BadField(self.wrong(name, value))

    def expression(self, whole: pl.Expr) -> pl.Expr:
        """Returns the seconds of a column of whole numbers, null where a value is not a valid time."""
        return pl.when(whole.is_between(self._least, self._most)).then(whole // self._size)

    def wrong(self, name: str, value: Any) -> str:
        """Returns what is wrong with a field that is not a valid time of the file."""
        other = self._unit_of(value)
        if other:
            return (
                f"field {name!r} is {value}, in {other}; it must be {self.unit} since 1970 like the other times "
                "in the file, because units must not be mixed"
            )
        return f"field {name!r} is {str(value)[:40]}; it must be {self.unit} since 1970, from 1990 to next year"


def _values_of(record: Any, name: str) -> Iterator[Any]:
    """Yields all values of this name, at any depth of a record."""
    left = [record]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if name in value:
                yield value[name]
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
