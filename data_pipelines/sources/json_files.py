"""Reads JSON files from external sources: one object per line, or one object.

NaN and Infinity are accepted, as Python writes them; `checks.field` and related functions refuse them as numbers.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import BadField, Faults
from data_pipelines.sources.reading import TextLine, read_lines

Parsed = TypeVar("Parsed")


def from_json(text: str) -> dict[str, Any]:
    """Decodes a JSON object.

    Raises:
      BadField: it is not JSON, not an object, or has a key twice.
    """
    try:
        record = _DECODER.decode(text)
    except BadField:
        raise
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise BadField(f"not JSON (more than one value, the second starts at column {error.colno})") from error
        if error.pos >= len(text.rstrip()) or not text.rstrip().endswith("}"):
            raise BadField(
                "not JSON (it ends inside a value: the line is cut off, or the value continues on the next line)"
            ) from error
        raise BadField(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise BadField("nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise BadField(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadField(f"a {type(record).__name__} instead of an object")
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise BadField(f"field {_repeated(pairs)[0][:40]!r} occurs twice")
    return record


def _repeated(pairs: list[tuple[str, Any]]) -> list[str]:
    """Returns the keys that occur more than once in an object."""
    return [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def read_objects(
    path: Path,
    faults: Faults,
    parse: Callable[[dict[str, Any]], Parsed],
    decode: Callable[[str], dict[str, Any]] = from_json,
    *,
    needed: bool = True,
) -> Iterator[tuple[str, Parsed]]:
    """Yields (place, result of `parse`) for each object of a file with one object per line. A record is bad if
    `decode`, which reads an object from a line, or `parse`, which converts it, raises `BadField`. Raises DataError if
    the file cannot be read, is a single array, or is empty although it is `needed`; or most of its first lines are
    bad."""
    first = True
    for line in faults.watched(line for line in read_lines(path) if line.text.strip()):
        if first and decode is from_json:
            _refuse_other_layouts(line)
        first = False
        try:
            if line.fault:
                raise BadField(line.fault)
            record = parse(decode(line.text))
        except BadField as fault:
            faults.bad_record(f"{line.place}: {fault}")
        else:
            yield line.place, record
    if first and needed:
        raise DataError(f"{path} is empty; one object per line is needed")


def _refuse_other_layouts(line: TextLine) -> None:
    """Raises DataError if the first line begins an array, or an object that spans several lines."""
    needed = f"{line.place}: one object per line is needed"
    if line.text.lstrip().startswith("["):
        raise DataError(f"{needed}, but this is an array (jq -c '.[]' splits it)")
    if line.text.split() == ["{"]:
        raise DataError(f"{needed}, but this one spans several lines (jq -c . joins them)")


def read_object(path: Path, holds: str, faults: Faults) -> dict[str, Any]:
    """Reads a JSON file of one object; if a key occurs twice, the first value counts and the key is a bad record.
    Raises DataError if the file is missing or damaged, or holds something else."""
    lines = []
    for line in read_lines(path):
        if line.fault:
            raise DataError(f"{line.place}: {line.fault}")
        lines.append(line.text)
    twice: list[str] = []

    def first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) == len(pairs):
            return record
        twice.extend(_repeated(pairs))
        return dict(reversed(pairs))

    try:
        found = json.loads("\n".join(lines), object_pairs_hook=first)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); it must be an object: {holds}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} contains a {type(found).__name__}; it must be an object: {holds}")
    for key in twice:
        faults.bad_record(f"{path.name}: key {key[:40]!r} occurs twice")
    return found
