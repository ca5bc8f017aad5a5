"""Files of vectors by item id: the outputs of text or image encoders for a catalogue, or a user's own vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.code_files import places_of, read_rows, reading
from data_pipelines.errors import DataError

KIND = "a file of vectors: Parquet with the columns item_id and vector, or .npz with the arrays item_ids and vectors"


def read_vectors(path: Path, item_ids: Sequence[str], known: int | None = None) -> np.ndarray:
    """Returns the vectors of the given items, in this order: float32 [I, F]. An item that the file lacks gets the mean
    of the others, of which `known` leading ones count (None: all). Raises DataError if the file is missing or of
    another kind, has no vector of any of the items, or one that is not finite."""
    with reading(path, KIND, "unimp features"):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                ids, vectors = arrays["item_ids"].astype(str).tolist(), arrays["vectors"].astype(np.float32)
        else:
            table = read_rows(path, "vector")
            ids = table["item_id"].cast(pa.string()).to_pylist()
            if pc.count_distinct(pc.list_value_length(table["vector"]), mode="all").as_py() != 1:
                raise ValueError("there must be vectors, all of one length")
            flat = [np.from_dlpack(chunk.flatten().cast(pa.float32())) for chunk in table["vector"].chunks]
            vectors = np.concatenate(flat).reshape(len(ids), -1)
        if vectors.ndim != 2 or len(vectors) != len(ids) or not vectors.size:
            raise ValueError(f"vectors have shape {vectors.shape} for {len(ids)} items")
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: an item has two vectors")
    rows = places_of(item_ids, ids)
    there, found = rows >= 0, vectors[rows]
    if not there[:known].any():
        raise DataError(f"{path} has no vector for any item; it was made for another catalogue")
    if not np.isfinite(found).all(axis=1)[there].all():
        raise DataError(f"{path}: a vector has values that are not finite")
    found[~there] = found[:known].mean(axis=0, dtype=np.float64, where=there[:known, None])
    return found
