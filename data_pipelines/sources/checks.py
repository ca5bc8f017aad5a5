"""Validates fields of external data; every fault is reported with its file, line and field."""

import dataclasses
import html
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

from data_pipelines.errors import DataError, printable

OnBad = Literal["refuse", "skip"]
SAMPLE = 1000
"""The number of leading records that are checked for another layout, which is assumed if more than half are bad."""
FEW = 10
"""With fewer bad records than this, no other layout is assumed."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MARKUP = re.compile(r"<[a-zA-Z/!][^<>]*>|\[\[VIDEOID:[^\[\]]*\]\]")
LARGEST_FLOAT = 3.4e38
"""Approximately the largest float32, the type in which ratings are stored."""
_MISSING = object()
Record = TypeVar("Record")


@dataclasses.dataclass
class Faults:
    """The faults found in a source.

    With `refuse`, the first bad record is an error and nothing is prepared; with `skip`, bad records are left out and
    listed. Missing and broken images are never errors: their items are kept without an image and listed.
    """

    on_bad: OnBad = "refuse"
    records: list[str] = dataclasses.field(default_factory=list)
    images: list[str] = dataclasses.field(default_factory=list)

    def bad_record(self, fault: str) -> None:
        """Lists a bad record, or raises `DataError` if bad records are refused."""
        if self.on_bad == "refuse":
            raise DataError(f"{fault} (--on-bad skip leaves out such records)")
        self.records.append(printable(fault))

    def watched(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yields all records of a file; a bad one must be reported before the next is requested. Raises DataError if
        most of the first `SAMPLE` are bad, so that the file has another layout."""
        first, bad, number = len(self.records), 0, 0
        for number, record in enumerate(records, start=1):
            faults_before = len(self.records)
            yield record
            bad += len(self.records) > faults_before
            if number == SAMPLE:
                self.refuse_most(first, bad, number)
        if number < SAMPLE:
            self.refuse_most(first, bad, number)

    def refuse_most(self, first: int, bad: int, number: int) -> None:
        """Raises DataError if most of the first `number` records are bad; `first` is the index of the file's first
        fault."""
        if bad >= FEW and 2 * bad > number:
            raise DataError(
                f"{self.records[first]}; {bad} of the first {number} records are bad, too many to leave out"
            )


class BadField(ValueError):
    """A field that is missing or of the wrong type."""


# --- fields of records -----------------------------------------------------------------------------------------------


def field(record: dict[str, Any], name: str, *kinds: type, default: Any = _MISSING) -> Any:
    """Returns a field of one of the given types; a bool is not an int, but a whole float is.

    Where null is allowed for a text, NaN is too, since pandas writes it for missing values.

    Raises:
      BadField: it is missing without a default, or of another type.
    """
    value = record.get(name, default)
    if value is _MISSING:
        raise BadField(f"field {name!r} is missing")
    if default is None and float not in kinds and value != value:
        return None
    if int in kinds and float not in kinds:
        value = whole(value)
    if value is not default and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise BadField(f"field {name!r} is {shown(value)}, a {type(value).__name__}; it must be {wanted}")
    if isinstance(value, str):
        _check_encodable(name, value)
    return value


def whole(value: Any) -> Any:
    """Converts a whole float to an int, which it may be meant as; returns any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """Returns the beginning of any value, as JSON if possible."""
    try:
        return json.dumps(value)[:40]
    except TypeError:
        return repr(value)[:40]
    except ValueError:
        return "a number with thousands of digits"


def _check_encodable(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadField(f"field {name!r} is not valid text ({error.reason})") from error


def word(record: dict[str, Any], name: str) -> str:
    """Returns an identifier; raises BadField if it is missing, not a string, empty, or has white space or control
    characters."""
    value = field(record, name, str)
    if value.split() != [value] or CONTROL.search(value):
        raise BadField(f"field {name!r} is {value[:40]!r}; it must be an identifier without white space")
    return value


def stars(
    record: dict[str, Any],
    name: str,
    least: float = -LARGEST_FLOAT,
    most: float = LARGEST_FLOAT,
    *,
    needed: bool = False,
) -> float:
    """Returns a rating.

    Args:
      least, most: the ends of the source's scale, if it has one.
      needed: whether the rating is required; otherwise a missing one is NaN.

    Raises:
      BadField: it is missing, not a number, or not on the scale.
    """
    if name not in record and not needed:
        return math.nan
    value = field(record, name, int, float)
    if not least <= value <= most:  # false for NaN too
        scale = "finite, in 32 bits" if most == LARGEST_FLOAT else f"from {least:g} to {most:g}"
        raise BadField(f"field {name!r} is {shown(value)}; it must be {scale}")
    return float(value)


def text(record: dict[str, Any], name: str) -> str:
    """Returns a text, "" if it is missing or null."""
    return field(record, name, str, default=None) or ""


def texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """Returns a list of strings, () if it is missing."""
    values = field(record, name, list, default=())
    for value in values:
        if not isinstance(value, str):
            raise BadField(f"field {name!r} contains {shown(value)}; it must contain strings only")
        _check_encodable(name, value)
    return tuple(values)


# --- texts -----------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Replaces control characters; text that has any also gets its words separated by single spaces."""
    return " ".join(CONTROL.sub(" ", text).split()) if CONTROL.search(text) else text


def clean(text: str) -> str:
    """Converts text of a web page to one line, with words separated by single spaces.

    Tags and video marks are removed, and entities are decoded.
    """
    return " ".join(CONTROL.sub(" ", html.unescape(MARKUP.sub(" ", text))).split())
