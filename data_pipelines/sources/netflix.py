"""Netflix as published by LLMRec: users, films and posters, from a local folder.

    FOLDER/train.json, val.json, test.json     {"user": [item, …], …}
    FOLDER/item_attribute.csv                  id,year,title per line; if there is a header line, in any order
    FOLDER/Netflix_Posters/ or .zip            ID.jpg, by the id of that line

The id of an item is the number of its line in `item_attribute.csv`, from 0 on. A title may contain commas, quoted or
not; a year may be missing. Held-out items are those of the publisher, in `val.json` and `test.json`. If a user has
several, the first of each file is the target and the others are left out: they are right answers too, which must
neither be trained on nor shown in a history. An item that a user has in several files counts as test before validation,
and as either before training. There are no times: a history is in the order of the file. The publisher's pickled
matrices contain the same data and are not read.
"""

import csv
import json
import re
from pathlib import Path

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME, Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import BadField, Faults, clean, whole, word
from data_pipelines.sources.images import StoredImages
from data_pipelines.sources.json_files import read_object
from data_pipelines.sources.reading import read_lines
from data_pipelines.sources.source import Counts, Source
from data_pipelines.sources.tables import check_header

FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}
COLUMNS: tuple[str, ...] = ("id", "year", "title")
Film = tuple[str, str, str]


def read_films(path: Path, faults: Faults) -> list[Film | None]:
    """Reads (id, year, title) of each line; bad lines become None, so that the others keep their numbers."""
    films: list[Film | None] = []
    names, opened = COLUMNS, ""  # the place of a line with an unclosed quote
    for number, line in enumerate(faults.watched(line for line in read_lines(path) if line.text.strip())):
        fields = next(csv.reader([line.text]), [])
        if not number and not fields[0].isdigit() and re.search(r"\b(id|year|title)\b", line.text, re.IGNORECASE):
            names = tuple(name.strip().lower() for name in fields)
            check_header(line, names, COLUMNS)
            continue
        last = len(names) - 1
        if names[last] == "title":
            fields[last:] = [",".join(fields[last:])]  # a title may contain unquoted commas
        film = dict(zip(names, fields, strict=False))
        own_id, year, title = (film.get(name, "").strip() for name in COLUMNS)
        year = re.sub(r"\.0$", "", year)
        right = re.fullmatch(r"[0-9]+", own_id) and re.fullmatch(r"[0-9]{4}|NULL|nan|", year) and clean(title)
        whole_line = right and not line.fault and len(fields) == len(names)
        if opened and not whole_line:
            raise DataError(
                f"{opened}: a quoted title continues on the next line; films are numbered by line, so each must "
                "be on a single line"
            )
        opened = line.place if is_unclosed(line.text) else ""
        if whole_line and not opened:
            films.append((own_id, year if year.isdigit() else "", clean(title)))
        else:
            faults.bad_record(f"{line.place}: {line.fault or repr(line.text[:60]) + '; it must be ' + ','.join(names)}")
            films.append(None)
    if not films:
        raise DataError(f"{path} has no films; each line must be {','.join(COLUMNS)}")
    return films


def is_unclosed(line: str) -> bool:
    """Returns whether a quoted field of a CSV line is not closed."""
    try:
        next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False


def read_histories(path: Path, films: list[Film | None], faults: Faults) -> dict[str, list[int]]:
    """Reads the known items of each user."""
    histories = {}
    for user, listed in faults.watched(read_object(path, "from user to list of items", faults).items()):
        place = f"{path.name}: user {user[:40]}"
        items = list(map(whole, listed)) if isinstance(listed, list) else listed
        try:
            word({"user": user}, "user")
        except BadField as fault:
            faults.bad_record(f"{path.name}: {fault}")
            continue
        if not isinstance(items, list) or not all(type(item) is int for item in items):
            faults.bad_record(f"{place}: {json.dumps(items)[:40]} is not a list of item numbers")
            continue
        known = {item for item in items if 0 <= item < len(films) and films[item] is not None}
        for item in dict.fromkeys(items):
            if item not in known:
                faults.bad_record(f"{place}: item {item} is not in item_attribute.csv")
        histories[user] = [item for item in items if item in known]
    return histories


def split_histories(files: dict[str, dict[str, list[int]]]) -> pl.DataFrame:
    """Returns columns user, item, time (unknown) and split; each user's rows are training, validation, test."""
    rows = []
    for user in dict.fromkeys(user for histories in files.values() for user in histories):
        of = {split: list(dict.fromkeys(histories.get(user, ()))) for split, histories in files.items()}
        held_out = {*of["validation"], *of["test"]}
        validation = [item for item in of["validation"] if item not in of["test"]]
        chosen = {"train": [item for item in of["train"] if item not in held_out]}
        chosen |= {"validation": validation[:1], "test": of["test"][:1]}
        rows += [(user, str(item), NO_TIME, split) for split, items in chosen.items() for item in items]
    schema = {"user": pl.String, "item": pl.String, "time": pl.Int64, "split": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


class Netflix(RecordBuilder):
    """Netflix with posters and the publisher's splits, from a local folder."""

    name = "netflix"
    PUBLISHER = "https://github.com/HKUDS/LLMRec"
    DESCRIPTION = f"Netflix, as LLMRec publishes it; {PUBLISHER}"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        films_csv = self.file("item_attribute.csv", "one film per line: id,year,title")
        paths = {split: self.file(name, "from user to list of items") for split, name in FILES.items()}
        films = read_films(films_csv, self.faults)
        files = {split: read_histories(path, films, self.faults) for split, path in paths.items()}
        images = StoredImages(films_csv.with_name("Netflix_Posters"), self.faults)

        def item_of(item_id: str) -> Item:
            film = films[int(item_id)]
            assert film is not None  # guaranteed by `read_histories`
            number, year, title = film
            image = images.read(f"{number}.jpg")
            return Item(item_id, title, (("Title", title), ("Release Date", year)), (), image)

        met = [(user, item) for histories in files.values() for user, items in histories.items() for item in items]
        read = Counts(len({user for user, _ in met}), len({item for _, item in met}), len(met))
        return Source(split_histories(files), item_of, read)
