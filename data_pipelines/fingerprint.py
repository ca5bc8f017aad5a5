"""What a run is trained on, in digests: so that it is never gone on with, or examined, on other data unnoticed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.atomic import write_json
from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.errors import DataError

FILE = "data.json"
Fingerprint = dict[str, tuple[int, str]]
"""By what users call a part of the data: how many there are, and the SHA-256 of all of them in their order."""
DATA_PARTS = (
    "items", "texts of items", "images", "users", "interactions", "known times", "ratings", "held-out interactions",
    "reviews", "texts of prompts",
)  # fmt: skip


def fingerprint(corpus: Corpus, has_image: np.ndarray, prompts: Sequence[str]) -> Fingerprint:
    """
    Args:
      has_image: bool [I].
      prompts: what prompts say, of each item and beside them.
    """
    rows = zip(corpus.titles, corpus.attributes, corpus.categories, strict=True)
    of_items = [[title, *itertools.chain.from_iterable(pairs), *categories] for title, pairs, categories in rows]
    numbers = np.fromiter(corpus.texts, np.int64, len(corpus.texts))
    times, ratings = corpus.times.astype("<i8"), np.nan_to_num(corpus.ratings.astype("<f4"), nan=-1e30)
    parts: dict[str, tuple[int, Iterable[bytes]]] = {
        "items": (corpus.num_items, _texts(corpus.item_ids)),
        "texts of items": (
            sum(map(len, of_items)),
            [*_array(list(map(len, of_items))), *_texts(list(itertools.chain.from_iterable(of_items)))],
        ),
        "images": (int(has_image.sum()), _array(has_image)),
        "users": (corpus.num_users, _texts(corpus.user_ids)),
        "interactions": (len(corpus.items), [*_array(corpus.offsets), *_array(corpus.items)]),
        "known times": (int((times >= 0).sum()), [times.tobytes()]),
        "ratings": (int((~np.isnan(corpus.ratings)).sum()), [ratings.tobytes()]),
        "held-out interactions": (int((corpus.splits != TRAIN).sum()), _array(corpus.splits)),
        "reviews": (len(numbers), [*_array(numbers), *_texts(list(corpus.texts.values()))]),
        "texts of prompts": (len(prompts), _texts(prompts)),
    }
    return {name: (count, _digest(chunks)) for name, (count, chunks) in parts.items()}


def digest_of(texts: Sequence[str]) -> tuple[int, str]:
    """What a fingerprint says of texts."""
    return len(texts), _digest(_texts(texts))


def save_fingerprint(path: Path, data: Fingerprint) -> None:
    """Writes a fingerprint, whole or not at all."""
    write_json(path, data, shared=True)


def check_same(path: Path, data: Fingerprint, parts: Collection[str] = DATA_PARTS) -> None:
    """
    Args:
      path: what `save_fingerprint` wrote; where it is missing, as of runs before there were such files, all is well.
      parts: those that must be the same.

    Raises:
      DataError: one differs, or the file is damaged.
    """
    try:
        before = {name: (int(count), str(digest)) for name, (count, digest) in json.loads(path.read_bytes()).items()}
        before = {
            ("images" if name == "pictures" else name): value for name, value in before.items()
        }  # its former name
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: does not say what data the run was trained on ({error})") from error
    changed = []
    for name in parts:
        (count, digest), (known, known_digest) = data[name], before.get(name, data[name])
        if digest != known_digest:
            others = f"{name} {known:,}, now {count:,}" if known != count else f"{known:,} {name}, now others"
            changed.append(others)
    if changed:
        raise DataError(
            f"the data is not what this run was trained on ({path}): {'; '.join(changed)}; prepare the same source "
            "again with the same options, or point --data.folder at it"
        )


def _array(numbers: np.ndarray | Sequence[int]) -> list[bytes]:
    return [np.asarray(numbers).astype("<i8").tobytes()]


def _texts(texts: Sequence[str]) -> list[bytes]:
    return [
        *_array(np.fromiter(map(len, texts), np.int64, len(texts))),
        "".join(texts).encode("utf-8", "surrogatepass"),
    ]


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
