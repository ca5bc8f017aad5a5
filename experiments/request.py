"""Parses a request about a user of the source or about a history in JSON; every mistake is reported in one line."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.nearest import did_you_mean
from data_pipelines.sources.checks import BadField, field, shown, stars
from data_pipelines.sources.json_files import from_json

STDIN = "standard input"
EXAMPLE = '{"history": ["ITEM_ID", {"item": "ITEM_ID", "rating": 4.0}]}'
FIELDS = ("history", "query", "item", "candidates")


@dataclasses.dataclass(frozen=True)
class Request:
    """One request; items and users are given by their ids in the source.

    Attributes:
      user: the user whose history is used; None if `history` gives it.
      history: (item id, stars or NaN), oldest first.
      item: the item whose rating is predicted.
    """

    task: str = "recommendation"
    user: str | None = None
    history: tuple[tuple[str, float], ...] = ()
    query: str | None = None
    item: str | None = None
    candidates: tuple[str, ...] = ()


def read_request(text: str) -> Request:
    """Parses a history, and what is asked about it, from JSON such as `EXAMPLE`; a DataError names the field."""
    text = text.removeprefix("\ufeff").strip()
    if not text:
        raise DataError(f"{STDIN} is empty; give a --user, or a history on {STDIN}, such as {EXAMPLE}")
    try:
        record = from_json(text)
        check_object(record, FIELDS)
        if record.get("history") == []:
            raise BadField("field 'history' is empty; at least one item is needed")
        return Request(
            history=tuple(map(read_met, field(record, "history", list))),
            query=field(record, "query", str, default=None),
            item=None if record.get("item") is None else read_id(record, "item"),
            candidates=tuple(
                read_id({"candidates": one}, "candidates") for one in field(record, "candidates", list, default=())
            ),
        )
    except BadField as fault:
        raise DataError(f"{STDIN}: {fault}; expected, for example, {EXAMPLE}") from fault


def decoded(content: bytes) -> str:
    """Decodes JSON text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; DataError for all others."""
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{STDIN} is not UTF-8 (byte 0x{content[error.start]:02x} at position {error.start}); convert it, for "
            "example with `iconv -f latin1 -t utf-8`"
        ) from error


def read_id(record: dict[str, Any], name: str) -> str:
    """Returns an id; a number is converted to its text."""
    value = field(record, name, str, int, float)
    return value if isinstance(value, str) else json.dumps(value)


def read_met(met: Any) -> tuple[str, float]:
    """Returns (item id, stars or NaN) of one entry of a history."""
    if isinstance(met, str | int | float) and not isinstance(met, bool):
        return read_id({"history": met}, "history"), math.nan
    check_object(met, ("item", "rating"))
    return read_id(met, "item"), stars(met, "rating")


def check_object(record: Any, names: Sequence[str]) -> None:
    """Raises BadField if a record is not a JSON object, or has an unknown field."""
    if not isinstance(record, dict):
        raise BadField(f"{shown(record)} instead of an object with {', '.join(names)}")
    for name in record:
        if name not in names:
            raise BadField(f"there is no field {name!r}; {did_you_mean(name, names)}There are {', '.join(names)}")
