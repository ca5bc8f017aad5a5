"""Reading what others wrote: every field is checked, every fault is named by file, line and field."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME

OnBad = Literal["refuse", "skip"]
_MISSING = object()


@dataclasses.dataclass
class Faults:
    """What was wrong with a source.

    With `refuse`, the first bad record is an error and nothing is prepared; with `skip`, bad records are left out and
    listed. Missing and broken pictures never stop anything: their items stay, without a picture, and are listed.
    """

    on_bad: OnBad = "refuse"
    records: list[str] = dataclasses.field(default_factory=list)
    pictures: list[str] = dataclasses.field(default_factory=list)

    def bad_record(self, fault: str) -> None:
        if self.on_bad == "refuse":
            raise DataError(f"{fault} (--on-bad skip leaves such records out)")
        self.records.append(fault)


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, str]]:
    """(place, line) of a text file, plain or `.gz`, where place is `NAME line NUMBER`.

    Raises:
      DataError: the file does not exist, is cut off, or is not text.
    """
    packed = path.with_name(path.name + ".gz")
    found = path if path.exists() or not packed.exists() else packed
    try:
        with (
            gzip.open(found, "rt", encoding=encoding)
            if found.suffix == ".gz"
            else found.open(encoding=encoding) as file
        ):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{found.name} line {number}", line.rstrip("\r\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{found} is damaged ({error})") from error


def read_objects(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a JSON-lines file."""
    for place, line in read_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            faults.bad_record(f"{place}: not JSON ({error.msg} at column {error.colno})")
            continue
        except RecursionError:
            faults.bad_record(f"{place}: nested too deeply")
            continue
        except ValueError as error:  # a whole number of thousands of digits
            faults.bad_record(f"{place}: {error}")
            continue
        if not isinstance(record, dict):
            faults.bad_record(f"{place}: a {type(record).__name__} where an object should be")
            continue
        yield place, record


def read_object(path: Path, holds: str) -> dict[str, Any]:
    """The one object of a JSON file.

    Args:
      holds: what the object is of, for messages.

    Raises:
      DataError: the file is missing or damaged, or holds something else.
    """
    try:
        whole = json.loads("\n".join(line for _, line in read_lines(path)))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); there must be an object: {holds}") from error
    if not isinstance(whole, dict):
        raise DataError(f"{path} holds a {type(whole).__name__}; there must be an object: {holds}")
    return whole


class BadField(ValueError):
    """A field that is missing or of the wrong type."""


def field(record: dict[str, Any], name: str, *kinds: type, default: Any = _MISSING) -> Any:
    """A field of one of the given types; a bool is no int.

    Raises:
      BadField: it is missing without a default, or of another type.
    """
    value = record.get(name, default)
    if value is _MISSING:
        raise BadField(f"field {name!r} is missing")
    if value is not default and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise BadField(f"field {name!r} is {shown(value)}, a {type(value).__name__}; it must be {wanted}")
    if isinstance(value, str):
        encodable(name, value)
    return value


def shown(value: Any) -> str:
    """The beginning of a value, whatever it is, as JSON where that has it."""
    try:
        return json.dumps(value)[:40]
    except (TypeError, ValueError):
        return repr(value)[:40]


def encodable(name: str, text: str) -> None:
    """
    Raises:
      BadField: the text cannot be written as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadField(f"field {name!r} is no valid text ({error.reason})") from error


def seconds(record: dict[str, Any], name: str) -> int:
    """A time in seconds since 1970, `NO_TIME` where it is missing."""
    value = field(record, name, int, default=NO_TIME)
    if value != NO_TIME and not 0 <= value < 2**62:
        raise BadField(f"field {name!r} is {value}; it must be seconds since 1970")
    return value


def stars(record: dict[str, Any], name: str) -> float:
    """A rating, NaN where it is missing."""
    value = float(field(record, name, int, float, default=math.nan))
    if math.isinf(value):
        raise BadField(f"field {name!r} is {value}; it must be finite")
    return value


def texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """A list of strings, () where it is missing."""
    values = field(record, name, list, default=())
    for value in values:
        if not isinstance(value, str):
            raise BadField(f"field {name!r} holds {shown(value)}; it must hold strings only")
        encodable(name, value)
    return tuple(values)
