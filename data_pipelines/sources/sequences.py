"""The sequence files introduced by S3-Rec: one line per user with the items in order of time; no times and no texts.

    FOLDER/NAME.txt                       user item item …
    FOLDER/NAME_item2attributes.json      {"item": [attribute, …], …}, of the items that have any

NAME is the only category of the selection, or the only `.txt` file of the folder. Items and attributes are numbers
without further meaning: the title of an item is its number, and attribute 12 is the word 12, which search can use (a12
would be two tokens). Lines are taken as they are; repeated items are kept.
"""

import json
import re
from pathlib import Path

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME, Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import CONTROL, Faults, whole
from data_pipelines.sources.json_files import read_object
from data_pipelines.sources.reading import names_in, read_lines
from data_pipelines.sources.source import Counts, Source, core


def read_sequences(path: Path, faults: Faults) -> pl.DataFrame:
    """Reads columns user, item and time, which is unknown."""
    users, sequences = list[str](), list[list[str]]()
    seen: set[str] = set()
    for line in faults.watched(line for line in read_lines(path) if line.text.strip()):
        user, *items = line.text.split()
        strange = [item for item in items if not re.fullmatch("[0-9]+", item)]
        if line.fault:
            faults.bad_record(f"{line.place}: {line.fault}")
        elif CONTROL.search(user):
            faults.bad_record(f"{line.place}: user {user[:40]!r} has control characters")
        elif not items:
            faults.bad_record(
                f"{line.place}: user {user[:40]} has no items; a line must contain the user and then its items, "
                "separated by blanks"
            )
        elif strange:
            faults.bad_record(f"{line.place}: item {strange[0][:40]!r} is not a whole number")
        elif user in seen:
            faults.bad_record(f"{line.place}: user {user} occurs twice")
        else:
            seen.add(user)
            users.append(user)
            sequences.append(items)
    if not users and not faults.records:
        raise DataError(f"{path} is empty; each line must contain a user and then its items")
    item_lists = pl.Series(sequences, dtype=pl.List(pl.String))
    frame = pl.DataFrame({"user": pl.Series(users, dtype=pl.String), "item": item_lists}).explode("item")
    return frame.with_columns(time=pl.lit(NO_TIME, pl.Int64))


def read_attributes(path: Path, faults: Faults) -> dict[str, tuple[str, ...]]:
    """Reads the attributes of each item, as words."""
    words = {}
    for item, listed in faults.watched(read_object(path, "from item to list of attributes", faults).items()):
        numbers = list(map(whole, listed)) if isinstance(listed, list) else listed
        if isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers):
            words[item] = tuple(str(number) for number in dict.fromkeys(numbers))
        else:
            shown = json.dumps(numbers)[:40]
            faults.bad_record(f"{path.name}: item {item[:40]!r} has {shown}; it must be a list of attribute numbers")
    return words


class Sequences(RecordBuilder):
    """Sequence files with attributes, as in S3-Rec (Beauty, Sports_and_Outdoors, …), from a local folder."""

    name = "sequences"
    PUBLISHER = "https://github.com/RUCAIBox/CIKM2020-S3Rec"
    DESCRIPTION = f"Sequences of items with attributes; {PUBLISHER}"
    SELECTS = ("categories", "user_core", "item_core")

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        name = self._name()
        path = self.file(f"{name}.txt", "one user per line: the user, then its items")
        attributes_json = self.file(f"{name}_item2attributes.json", "from item to list of attributes")
        attributes = read_attributes(attributes_json, self.faults)
        frame = read_sequences(path, self.faults)

        def item_of(item_id: str) -> Item:
            words = attributes.get(item_id, ())
            return Item(item_id, item_id, (("Attributes", " ".join(words)),), words)

        return Source(core(frame, *self.cores), item_of, Counts.of(frame))

    def _name(self) -> str:
        """Returns the NAME of the files; raises DataError if it is not clear which file is meant."""
        asked = self.selection.categories
        if len(asked) == 1:
            return asked[0]
        names = names_in(self.source_dir, r".*\.txt") if self.source_dir else []
        if asked or len(names) > 1:
            those = ", ".join(name.removesuffix(".txt") for name in names) or "the files"
            raise DataError(
                f"{self.source_dir}: only one sequence file can be prepared at a time, because each file numbers "
                f"its items differently; choose one with --categories: {those}"
            )
        return names[0].removesuffix(".txt") if names else "NAME"
