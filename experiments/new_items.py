"""Reads items that are not yet in a run's catalogue from a file, for `unimp generate --new-items`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_pipelines.code_files import MISTAKES
from data_pipelines.corpus import Corpus, with_items
from data_pipelines.errors import DataError, reason_of
from data_pipelines.image_decoding import decode_image
from data_pipelines.nearest import did_you_mean
from data_pipelines.schema import Item
from data_pipelines.sources.checks import BadField, field, shown, text, texts
from data_pipelines.sources.json_files import from_json
from data_pipelines.sources.reading import read_lines
from experiments.data import ExperimentData, PreparedSource
from experiments.request import check_object, read_id

FIELDS = ("item_id", "title", "attributes", "categories", "image")


def with_new_items(data: ExperimentData, path: Path) -> ExperimentData:
    """Returns the data of a run with the items of a file appended; DataError if one is invalid or known, or the run
    names items by semantic ids."""
    items = read_new_items(path, data.corpus)
    known, images = data.corpus.num_items, [item.image for item in items]
    records = PreparedSource(
        corpus=with_items(data.corpus, items),
        has_image=np.append(data.has_image, [bool(image) for image in images]),
        read_image=lambda item: images[item - known] if item >= known else data.images.encoded(item),
    )
    return data.with_items(records)


def read_new_items(path: Path, corpus: Corpus) -> list[Item]:
    """Reads the items of a file of JSON lines or, by its suffix, of Parquet; a DataError names line and field."""
    known, items = set(corpus.item_ids), list[Item]()
    names = list(dict.fromkeys(name for attributes in corpus.attributes for name, _ in attributes))
    for place, record in read_records(path):
        try:
            item = read_item(record, names, path.parent)
            if item.item_id in known:
                raise BadField(f"item {item.item_id!r} is already in the catalogue or in this file")
        except BadField as fault:
            raise DataError(f"{place}: {fault}") from fault
        known.add(item.item_id)
        items.append(item)
    if not items:
        raise DataError(f"{path} is empty; at least one item is needed")
    return items


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place in the file, fields) of each item, without fields that are null."""
    if path.suffix == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                rows = file.read().to_pylist()
        except MISTAKES as error:
            raise DataError(f"{path} cannot be read ({reason_of(error)}); Parquet or JSON lines are needed") from error
        for number, row in enumerate(rows, start=1):
            yield f"{path.name} row {number}", {name: value for name, value in row.items() if value is not None}
        return
    for line in read_lines(path):
        if line.text.strip():
            try:
                if line.fault:
                    raise BadField(line.fault)
                yield line.place, from_json(line.text)
            except BadField as fault:
                raise DataError(f"{line.place}: {fault}") from fault


def read_item(record: dict[str, Any], names: list[str], folder: Path) -> Item:
    """Parses one item with the attributes `names`; image paths are relative to `folder`. Raises BadField if a field is
    missing, unknown or of the wrong type, or the image cannot be read."""
    check_object(record, FIELDS)
    given = field(record, "attributes", dict, list, default={})
    pairs = list(given.items()) if isinstance(given, dict) else given  # Parquet maps are lists of pairs
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise BadField(f"field 'attributes' is {shown(given)}; it must be an object of texts by name")
    attributes = dict(pairs)
    for name, value in attributes.items():
        if name not in names:
            raise BadField(
                f"no attribute {name!r} in this source; {did_you_mean(name, names)}it has {', '.join(names)}"
            )
        if not isinstance(value, str | None):
            raise BadField(f"attribute {name!r} is {shown(value)}; it must be a string")
    image, file = b"", text(record, "image")
    if file:
        try:
            image = (folder / file).read_bytes()
            decode_image(image)
        except (OSError, DataError) as error:
            raise BadField(f"image {file!r} cannot be read ({reason_of(error)})") from error
    return Item(
        read_id(record, "item_id"),
        text(record, "title"),
        tuple((name, attributes.get(name) or "") for name in names),
        texts(record, "categories"),
        image,
    )
