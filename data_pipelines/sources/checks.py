"""Reading what others wrote: every field is checked, every fault is named by file, line and field."""

from __future__ import annotations

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
"""So many records at the beginning of a file show what it is: more than half bad is another layout."""
FEW = 10
"""Fewer bad records than this are taken for what they are."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MARKUP = re.compile(r"<[a-zA-Z/!][^<>]*>|\[\[VIDEOID:[^\[\]]*\]\]")
LARGEST_FLOAT = 3.4e38
"""About the largest number of 32 bits, in which ratings are kept."""
_MISSING = object()
Record = TypeVar("Record")


@dataclasses.dataclass
class Faults:
    """What was wrong with a source.

    With `refuse`, the first bad record is an error and nothing is prepared; with `skip`, bad records are left out and
    listed. Missing and broken images never stop anything: their items stay, without an image, and are listed.
    """

    on_bad: OnBad = "refuse"
    records: list[str] = dataclasses.field(default_factory=list)
    images: list[str] = dataclasses.field(default_factory=list)

    def bad_record(self, fault: str) -> None:
        """Lists a bad record, or raises `DataError` where none is to be left out."""
        if self.on_bad == "refuse":
            raise DataError(f"{fault} (--on-bad skip leaves such records out)")
        self.records.append(printable(fault))

    def watched(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records of a file as they come, good ones and bad; a bad one is reported before the next is asked for.

        Raises:
          DataError: most of the first `SAMPLE` are bad, so that the file is of another layout.
        """
        first, bad, number = len(self.records), 0, 0
        for number, record in enumerate(records, start=1):
            told = len(self.records)
            yield record
            bad += len(self.records) > told
            if number == SAMPLE:
                self.refuse_most(first, bad, number)
        if number < SAMPLE:
            self.refuse_most(first, bad, number)

    def refuse_most(self, first: int, bad: int, number: int) -> None:
        """
        Args:
          first: the number of the file's first fault.
          bad: how many of `number` records are.

        Raises:
          DataError: those are most.
        """
        if bad >= FEW and 2 * bad > number:
            raise DataError(f"{self.records[first]}; so are {bad} of the first {number} records, too many to leave out")


class BadField(ValueError):
    """A field that is missing or of the wrong type."""


# --- fields of records -----------------------------------------------------------------------------------------------


def field(record: dict[str, Any], name: str, *kinds: type, default: Any = _MISSING) -> Any:
    """A field of one of the given types; a bool is no int, a whole float is one.

    Where null will do for a text, NaN will: pandas writes it for what is missing.

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
    """A whole float as an int, as which others may have meant it; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """The beginning of a value, whatever it is, as JSON where that has it."""
    try:
        return json.dumps(value)[:40]
    except TypeError:
        return repr(value)[:40]
    except ValueError:
        return "a number of thousands of digits"


def _check_encodable(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadField(f"field {name!r} is no valid text ({error.reason})") from error


def word(record: dict[str, Any], name: str) -> str:
    """An identifier: text without white space.

    Raises:
      BadField: it is missing, not a string, empty, or has white space or control characters in it.
    """
    value = field(record, name, str)
    if value.split() != [value] or CONTROL.search(value):
        raise BadField(f"field {name!r} is {value[:40]!r}; it must be an identifier, without white space")
    return value


def stars(
    record: dict[str, Any],
    name: str,
    least: float = -LARGEST_FLOAT,
    most: float = LARGEST_FLOAT,
    *,
    needed: bool = False,
) -> float:
    """A rating.

    Args:
      least, most: the ends of the source's scale, where it has one.
      needed: it must be there; otherwise it is NaN where it is missing.

    Raises:
      BadField: it is missing, no number, or not on the scale.
    """
    if name not in record and not needed:
        return math.nan
    value = field(record, name, int, float)
    if not least <= value <= most:  # nor is NaN
        scale = "finite, in 32 bits" if most == LARGEST_FLOAT else f"from {least:g} to {most:g}"
        raise BadField(f"field {name!r} is {shown(value)}; it must be {scale}")
    return float(value)


def text(record: dict[str, Any], name: str) -> str:
    """A text, "" where it is missing or null."""
    return field(record, name, str, default=None) or ""


def texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """A list of strings, () where it is missing."""
    values = field(record, name, list, default=())
    for value in values:
        if not isinstance(value, str):
            raise BadField(f"field {name!r} holds {shown(value)}; it must hold strings only")
        _check_encodable(name, value)
    return tuple(values)


# --- texts -----------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text without control characters: where it has any, its words one blank apart."""
    return " ".join(CONTROL.sub(" ", text).split()) if CONTROL.search(text) else text


def clean(text: str) -> str:
    """Text of a web page as one line, its words one blank apart.

    Tags and marks of videos are left out; entities become what they stand for.
    """
    return " ".join(CONTROL.sub(" ", html.unescape(MARKUP.sub(" ", text))).split())
