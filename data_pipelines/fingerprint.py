"""Digests of a run's training data, so that the run is not resumed or evaluated on other data unnoticed."""

import array
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.atomic import write_json
from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.disk_cache import DiskCache
from data_pipelines.errors import DataError

FILE = "data.json"
PART = 2**17
"""The number of values or texts that are processed at a time."""
Fingerprint = dict[str, tuple[int, str]]
"""For each part of the data, by its user-facing name: its size and the SHA-256 digest of its contents in order."""
DATA_PARTS = (
    "items", "texts of items", "images", "users", "interactions", "known times", "ratings", "held-out interactions",
    "reviews", "texts of prompts",
)  # fmt: skip


def fingerprint(
    corpus: Corpus, has_image: np.ndarray, prompts: Iterable[str], cache: DiskCache = DiskCache()
) -> Fingerprint:
    """Returns the fingerprint of a corpus and its prompts.

    Args:
      has_image: bool [I].
      cache: a cache keyed by what determines the items of the corpus and `prompts`, for the digests of these.
    """

    def of_texts() -> Fingerprint:
        texts = list(prompts)
        return {
            "items": (corpus.num_items, _digest(_texts(corpus.item_ids))),
            "texts of items": _texts_of_items(corpus),
            "texts of prompts": digest_of(texts),
        }

    ratings = (np.nan_to_num(part.astype("<f4"), nan=-1e30).tobytes() for part in _parts(corpus.ratings))
    parts: dict[str, tuple[int, Iterable[bytes]]] = {
        "images": (int(has_image.sum()), _array(has_image)),
        "users": (corpus.num_users, _texts(corpus.user_ids)),
        "interactions": (len(corpus.items), itertools.chain(_array(corpus.offsets), _array(corpus.items))),
        "known times": (int((corpus.times >= 0).sum()), _array(corpus.times)),
        "ratings": (int((~np.isnan(corpus.ratings)).sum()), ratings),
        "held-out interactions": (int((corpus.splits != TRAIN).sum()), _array(corpus.splits)),
        "reviews": (
            len(corpus.texts), itertools.chain(_array(corpus.text_events), _texts(corpus.texts.values()))
        ),
    }  # fmt: skip
    found = {name: (count, _digest(chunks)) for name, (count, chunks) in parts.items()}
    found |= {name: (count, digest) for name, (count, digest) in cache.value(of_texts).items()}
    return {name: found[name] for name in DATA_PARTS}


def digest_of(texts: Sequence[str]) -> tuple[int, str]:
    """Returns the number of texts and their digest, as in a fingerprint."""
    return len(texts), _digest(_texts(texts))


def save_fingerprint(path: Path, data: Fingerprint) -> None:
    """Writes a fingerprint, whole or not at all."""
    write_json(path, data, shared=True)


def check_same(path: Path, data: Fingerprint, parts: Collection[str] = DATA_PARTS) -> None:
    """Checks that the data is the same as when the fingerprint was saved.

    Args:
      path: the file written by `save_fingerprint`; runs from before this file was introduced lack it, which is
        accepted.

    Raises:
      DataError: a part differs, or the file is damaged.
    """
    try:
        before = {name: (int(count), str(digest)) for name, (count, digest) in json.loads(path.read_bytes()).items()}
        before = {
            ("images" if name == "pictures" else name): value for name, value in before.items()
        }  # its former name
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: the file does not describe the data of the run ({error})") from error
    changed = []
    for name in parts:
        (count, digest), (known, known_digest) = data[name], before.get(name, data[name])
        if digest != known_digest:
            others = f"{name} {known:,}, now {count:,}" if known != count else f"{known:,} {name} with other values"
            changed.append(others)
    if changed:
        raise DataError(
            f"the data is not what this run was trained on ({path}): {'; '.join(changed)}; prepare the same "
            "source again with the same options, or point --data.folder at it"
        )


def _texts_of_items(corpus: Corpus) -> tuple[int, str]:
    """Returns the number and the digest of all item texts (titles, attributes, categories), held as bytes only."""
    counts, lengths, encoded = array.array("q"), array.array("q"), list[bytes]()
    for title, pairs, categories in zip(corpus.titles, corpus.attributes, corpus.categories, strict=True):
        texts = [title, *itertools.chain.from_iterable(pairs), *categories]
        counts.append(len(texts))
        lengths.extend(map(len, texts))
        encoded.append(_encoded(texts))
    return len(lengths), _digest(itertools.chain(_array(np.asarray(counts)), _array(np.asarray(lengths)), encoded))


def _parts(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Splits an array into parts, so that at most a few megabytes of a memory-mapped file are copied at a time."""
    return (numbers[start : start + PART] for start in range(0, len(numbers), PART))


def _array(numbers: np.ndarray) -> Iterator[bytes]:
    return (part.astype("<i8").tobytes() for part in _parts(numbers))


def _texts(texts: Collection[str]) -> Iterator[bytes]:
    yield from _array(np.fromiter(map(len, texts), np.int64, len(texts)))
    rest = iter(texts)
    while part := [*itertools.islice(rest, PART)]:
        yield _encoded(part)


def _encoded(texts: Iterable[str]) -> bytes:
    return "".join(texts).encode("utf-8", "surrogatepass")


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
