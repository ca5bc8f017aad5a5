"""`unimp features`: writes an encoder's vector of each item's text or image to a file for `content.vectors`."""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from data_pipelines.atomic import atomic_file, write_json
from data_pipelines.code_files import check_place, write_rows
from data_pipelines.errors import DataError
from data_pipelines.records import read_items
from data_pipelines.schema import Item
from experiments.item_encoders import ItemEncoder, ItemEncoderConfig, item_text, open_item_encoder
from experiments.lock import holder, locked

logger = logging.getLogger(__name__)

FACTS = "batches.json"
"""File in the folder of batches that describes what they were computed from."""


@dataclasses.dataclass(frozen=True)
class CatalogueConfig:
    """The catalogue whose items are encoded."""

    source: str
    """Name of a source prepared by `unimp prepare`: its own name or the one given to it there."""
    folder: Path = Path("data")
    """Folder of the prepared sources."""


def features_command(
    file: tyro.conf.Positional[Path],
    data: CatalogueConfig,
    encoder: Annotated[ItemEncoderConfig, tyro.conf.arg(name="")],
    batch_size: int = 64,
) -> None:
    """Write vectors of items from an encoder, for runs with content.

    Finished batches are kept beside the file until it is complete, and the same command continues from them.

    Args:
      file: the Parquet file to write, for --content.vectors FILE.
      batch_size: number of items encoded together.
    """
    print(write_item_features(file, data, encoder, batch_size))


def write_item_features(path: Path, data: CatalogueConfig, config: ItemEncoderConfig, batch_size: int = 64) -> str:
    """Writes the vectors of all items that have a text or an image, and returns a message for the user. Raises
    DataError if there are none, or another process writes the same file; WeightsError if the encoder cannot be
    opened."""
    if path.suffix != ".parquet" or batch_size < 1:
        raise DataError(
            f"{path}, {batch_size} items per batch: the file must end in .parquet, and the batch size must be at "
            "least 1"
        )
    check_place(path)
    items, kind = read_items(data.source, data.folder), "image" if config.sees else "text"
    item_ids, places, digest = survey(items, images=config.sees)
    if not places:
        raise DataError(f"no item of {data.source} has any {kind}")
    encoder = open_item_encoder(config)
    folder = path.with_name(f".{path.name}.batches")
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock") as held:
        if held is None:
            raise DataError(f"{path} is being written by {holder(folder / 'lock')}")
        facts = {"items": digest, "encoder": f"{config}", "batch size": batch_size, "probe": encoder.probe.tolist()}
        begin(folder, facts)
        files = []
        for start in tqdm(range(0, len(places), batch_size), desc=f"{kind}s", unit="batch", leave=False):
            files.append(folder / f"{start}.npz")
            if not files[-1].exists():
                write_batch(files[-1], items, places[start : start + batch_size], encoder)
        found, vectors = read_batches(files)
        if not len(found):
            raise DataError(f"no image of {data.source} can be read")
        write_rows(path, [item_ids[place] for place in found], "vector", vectors)
        shutil.rmtree(folder)
    left_out = {f"without {kind}": len(items) - len(places), "with unreadable images": len(places) - len(found)}
    counts = ", ".join(f"{count:,} {which}" for which, count in left_out.items() if count)
    return (
        f"{path}: {len(found):,} vectors of {vectors.shape[1]:,} features, by "
        f"{encoder.name}{counts and '; items left out: '}{counts}\ntrain with --content.vectors {path}"
    )


def survey(items: Sequence[Item], *, images: bool) -> tuple[list[str], list[int], str]:
    """Returns (all ids; the indices of items with a text or an image, in encoding order; a digest of all of these).
    Texts of similar length are adjacent, so that batches have little padding."""
    item_ids: list[str] = []
    sizes: dict[int, int] = {}
    digest = hashlib.sha256()
    for place, item in enumerate(tqdm(items, desc="items", leave=False)):
        content = item.image if images else item_text(item).encode("utf-8", "surrogatepass")
        digest.update(json.dumps([item.item_id, len(content)]).encode() + content)
        item_ids.append(item.item_id)
        if content:
            sizes[place] = len(content)
    return item_ids, list(sizes) if images else sorted(sizes, key=lambda place: sizes[place]), digest.hexdigest()


def begin(folder: Path, facts: dict[str, Any]) -> None:
    """Removes batches from the folder unless they match the facts, and tells the user about existing ones."""
    finished = list(folder.glob("*.npz"))
    before = json.loads((folder / FACTS).read_bytes()) if finished else {}
    changed = [name for name in facts if name not in before or not alike(before[name], facts[name])]
    if not changed:
        print(f"{folder}: {len(finished):,} batches are already finished")
        return
    for file in finished:
        file.unlink()
    if finished:
        print(f"{folder}: restarted from the first batch, because these changed: {', '.join(changed)}")
    write_json(folder / FACTS, facts)


def alike(before: Any, now: Any) -> bool:
    """Returns whether facts are equal; vectors may differ by rounding, which varies between starts."""
    if isinstance(now, list):
        return len(before) == len(now) and np.allclose(before, now, rtol=1e-3, atol=1e-4)
    return before == now


def write_batch(path: Path, items: Sequence[Item], places: list[int], encoder: ItemEncoder) -> None:
    """Writes the indices of the items that can be read, int64 [n], and their (finite) vectors, float32 [n, F]."""
    inputs: dict[int, Any] = {}
    for place in places:
        item = items[place]
        try:
            inputs[place] = encoder.read(item)
        except DataError as error:
            logger.warning("item %s is left out: %s", item.item_id, error)
    vectors = encoder.encode(list(inputs.values())) if inputs else np.zeros((0, len(encoder.probe)), np.float32)
    if not np.isfinite(vectors).all():
        raise DataError(
            f"{encoder.name} computes values that are not finite for some items ({items[places[0]].item_id} …)"
        )
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, places=np.array(list(inputs), np.int64), vectors=vectors.astype(np.float32))


def read_batches(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (indices, vectors) of all batches, in catalogue order."""
    batches = []
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            batches.append((arrays["places"], arrays["vectors"]))
    places, vectors = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    order = np.argsort(places)
    return places[order], vectors[order]
