"""The TFDS features of records, and a way to silence TFDS; only needed to write records."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def _column(kind: Any) -> tfds.features.Tensor:
    """Returns a feature of variable length, written at once; `Sequence` checks and writes each value separately."""
    return tfds.features.Tensor(shape=(None,), dtype=kind)


ITEM_FEATURES = {
    "item_id": tfds.features.Text(),
    "title": tfds.features.Text(),
    "attributes": {"name": _column(np.object_), "text": _column(np.object_)},
    "categories": _column(np.object_),
    "image": tfds.features.Tensor(shape=(), dtype=np.object_),  # encoded bytes
}
USER_FEATURES = {
    "user_id": tfds.features.Text(),
    "interactions": {
        "item_id": _column(np.object_),
        "time": _column(np.int64),
        "rating": _column(np.float32),
        "text": _column(np.object_),
        "split": _column(np.object_),
    },
}


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Suppresses the progress bars and messages of TFDS."""
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)
