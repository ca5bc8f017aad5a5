"""Measures the time to open a catalogue of synthetic items, first and again, in a process of its own each time.

python -m experiments.benchmarks.token_speed --items 100000 1000000
"""

import concurrent.futures
import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from data_pipelines.columns import FOLDER, read_columns, write_columns
from data_pipelines.schema import Item
from data_pipelines.tasks.prompt import prompt_texts
from data_pipelines.vocabulary import build_vocabulary, load_vocabulary
from experiments.benchmarks.opening_speed import peak, users
from experiments.data import ExperimentData, PreparedSource, cache_of, fingerprint_of
from experiments.presets import PRESETS

CONFIG = dataclasses.replace(
    PRESETS["small"], vocabulary=dataclasses.replace(PRESETS["small"].vocabulary, attributes=())
)
"""The preset `small` with all attributes that items have."""


def main(items: tuple[int, ...] = (100_000,)) -> None:
    """Measures each number of items.

    Args:
      items: numbers of items, with twelve words and two categories each.
    """
    for count in items:
        with tempfile.TemporaryDirectory() as folder:
            write_columns(described(count), users(1000, count, 0), Path(folder) / FOLDER)
            corpus, _ = read_columns(Path(folder) / FOLDER) or (None, None)
            assert corpus is not None
            build_vocabulary(corpus, CONFIG.vocabulary, prompt_texts()).save(Path(folder) / "vocabulary")
            for which in ("first", "next"):
                with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    print(
                        f"{count:,} items, {which} opening: {pool.submit(opening, Path(folder)).result()}", flush=True
                    )


def described(count: int) -> Iterator[Item]:
    words = np.random.default_rng(0).integers(5000, size=(count, 12))
    for number, row in enumerate(words.tolist()):
        said = [f"w{word:x}" for word in row]
        attributes = ("Title", " ".join(said[:6])), ("Brand", said[6]), ("Kind", " ".join(said[7:10]))
        yield Item(f"item-{number}", attributes[0][1], attributes, (said[10], said[11]))


def opening(folder: Path) -> str:
    """Describes the processor time of each part in seconds, and the peak memory."""
    libraries = peak()
    times = [time.process_time()]
    corpus, has_image = read_columns(folder / FOLDER) or (None, None)
    assert corpus is not None
    assert has_image is not None
    records = PreparedSource(corpus, has_image, lambda _: b"", cache_of(folder))
    fingerprint_of(records, CONFIG)
    times.append(time.process_time())
    vocabulary = load_vocabulary(folder / "vocabulary", corpus)
    times.append(time.process_time())
    ExperimentData(CONFIG, records, vocabulary)
    times.append(time.process_time())
    took = "fingerprint {:.2f} s, vocabulary {:.2f} s, prompts {:.2f} s".format(*np.diff(times))
    return f"{took}; peak memory {peak() / 1e6:,.0f} MB, {libraries / 1e6:,.0f} MB of it before the start"


if __name__ == "__main__":
    tyro.cli(main)
