"""Files of JSON as others wrote them: an object a line, or one object.

NaN and Infinity are read, as Python writes them, and refused by `checks.field` and its kin where a number is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.reading import read_lines


def read_objects(path: Path, faults: Faults, *, needed: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a file with an object a line.

    Args:
      needed: there must be at least one line.

    Raises:
      DataError: the file cannot be read, is one array, or is empty; or most of its first lines are bad.
    """
    first = True
    for line in faults.watched(line for line in read_lines(path) if line.text.strip()):
        record, fault = (None, line.fault) if line.fault else parsed(line.text)
        if first and line.text.lstrip().startswith("["):
            raise DataError(
                f"{line.place}: one object a line is needed; this is one array (jq -c '.[]' takes it apart)"
            )
        if first and line.text.split() == ["{"]:
            raise DataError(
                f"{line.place}: one object a line is needed; this one goes over several (jq -c . joins them)"
            )
        first = False
        if fault:
            faults.bad_record(f"{line.place}: {fault}")
        elif not isinstance(record, dict):
            faults.bad_record(f"{line.place}: a {type(record).__name__} where an object should be")
        else:
            yield line.place, record
    if first and needed:
        raise DataError(f"{path} is empty; one object a line is needed")


def read_object(path: Path, holds: str, faults: Faults) -> dict[str, Any]:
    """The one object of a JSON file; of a key that occurs twice the first is bad, as it is said of records.

    Args:
      holds: what the object is of, for messages.

    Raises:
      DataError: the file is missing or damaged, or holds something else.
    """
    lines = []
    for line in read_lines(path):
        if line.fault:
            raise DataError(f"{line.place}: {line.fault}")
        lines.append(line.text)
    repeated: list[str] = []
    try:
        whole = _decoder(repeated).decode("\n".join(lines))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); there must be an object: {holds}") from error
    if not isinstance(whole, dict):
        raise DataError(f"{path} holds a {type(whole).__name__}; there must be an object: {holds}")
    for key in repeated:
        faults.bad_record(f"{path.name}: key {key[:40]!r} occurs a second time")
    return whole


def _decoder(repeated: list[str]) -> json.JSONDecoder:
    """A decoder that notes the keys that an object has twice, of which it keeps the first value."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            return dict(reversed(pairs))
        return found

    return json.JSONDecoder(object_pairs_hook=once)


_REPEATED: list[str] = []
_DECODER = _decoder(_REPEATED)


def parsed(text: str) -> tuple[Any, str]:
    """(value, "") of a line, or (None, what is wrong with it)."""
    _REPEATED.clear()
    try:
        record = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None, f"not JSON (more than one value in the line, from column {error.colno} on)"
        if error.pos >= len(text.rstrip()) or not text.rstrip().endswith("}"):
            return None, "not JSON (the line ends within a value: it is cut off, or the value goes on in the next line)"
        return None, f"not JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:  # a whole number of thousands of digits
        return None, f"not JSON ({error})"
    if _REPEATED:
        return None, f"field {_REPEATED[0][:40]!r} occurs a second time"
    return record, ""
