"""What sources of product reviews share: where their file is, what a review says, and the order of a user's."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction
from data_pipelines.sources.checks import CONTROL, BadField, field
from data_pipelines.sources.reading import is_there

MARKUP = re.compile(r"<[a-zA-Z/!][^<>]*>|\[\[VIDEOID:[^\[\]]*\]\]")


def source_file(folder: Path | None, name: str, holds: str, publisher: str) -> Path:
    """The file `name` of a source that cannot be downloaded from here, plain or `.gz`.

    Raises:
      DataError: no folder was given, or the file is not in it; the message says what is needed and who publishes it.
    """
    needed = f"{name}, {holds}, is needed in the folder that --source-dir names; for the data see {publisher}"
    if folder is None:
        raise DataError(f"this source cannot be downloaded from here: {needed}")
    if not is_there(folder / name):
        raise DataError(f"{folder / name} does not exist: {needed}")
    return folder / name


def clean(text: str) -> str:
    """Text of a web page as one line, its words one blank apart.

    Tags and marks of videos are left out; entities become what they stand for.
    """
    return " ".join(CONTROL.sub(" ", html.unescape(MARKUP.sub(" ", text))).split())


def written(text: str, headline: str) -> str:
    """What a user wrote, as one line: the review itself, or its headline where the review is empty."""
    return clean(text) or clean(headline)


def word(record: dict[str, Any], name: str) -> str:
    """An identifier: text without white space.

    Raises:
      BadField: it is missing, not a string, empty, or has white space or control characters in it.
    """
    value = field(record, name, str)
    if value.split() != [value] or CONTROL.search(value):
        raise BadField(f"field {name!r} is {value[:40]!r}; it must be an identifier, without white space")
    return value


def one_to_five(record: dict[str, Any], name: str) -> float:
    """A rating in stars, of which these sources know 1 to 5.

    Raises:
      BadField: it is missing, no number, or out of range.
    """
    value = field(record, name, int, float)
    if not 1 <= value <= 5:  # nor is NaN
        raise BadField(f"field {name!r} is {value}; it must be from 1 to 5")
    return float(value)


def in_order(reviews: Iterable[Interaction]) -> tuple[Interaction, ...]:
    """A user's reviews, oldest first, ties as they stand; of several of one item the latest counts, at its time."""
    latest: dict[str, Interaction] = {}
    for review in sorted(reviews, key=lambda review: review.time):
        latest.pop(review.item_id, None)  # so that it goes to the end
        latest[review.item_id] = review
    return tuple(latest.values())
