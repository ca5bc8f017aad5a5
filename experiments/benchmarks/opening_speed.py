"""Measures how long it takes to write the columns of a source, and to open them in a process of its own.

python -m experiments.benchmarks.opening_speed --interactions 1000000 10000000 100000000
"""

import concurrent.futures
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from data_pipelines.columns import FOLDER, read_columns, write_columns
from data_pipelines.schema import Interaction, Item, User

LENGTH = 100
"""Number of interactions per user."""
REVIEW = "words of " * 22 + "it"


def main(interactions: tuple[int, ...] = (1_000_000,), items: int = 100_000, reviews: int = 0) -> None:
    """Measures each number of interactions.

    Args:
      interactions: numbers of interactions, drawn uniformly from the catalogue.
      items: number of items in the catalogue.
      reviews: number of interactions of each user that have a text, of 200 letters.
    """
    for count in interactions:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            write_columns(catalogue(items), users(count // LENGTH, items, reviews), Path(folder) / FOLDER)
            written, size = time.process_time() - start, sum(path.stat().st_size for path in Path(folder).rglob("*"))
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                opened, grown = pool.submit(opening, Path(folder) / FOLDER).result()
        print(
            f"{count:,} interactions: written in {written:.1f} s ({size / 1e6:,.0f} MB, peak memory "
            f"{peak() / 1e6:,.0f} MB); opened in {opened:.3f} s, in {grown / 1e6:,.0f} MB"
        )


def catalogue(count: int) -> Iterator[Item]:
    for number in range(count):
        yield Item(f"item-{number}", f"Item number {number}", (("Kind", str(number % 100)),), (str(number % 100),))


def users(count: int, items: int, reviews: int) -> Iterator[User]:
    rng, texts = np.random.default_rng(0), [REVIEW] * reviews + [""] * (LENGTH - reviews)
    for number in range(count):
        met = rng.integers(items, size=LENGTH).tolist()
        yield User(
            f"user-{number}", tuple(Interaction(f"item-{item}", at, 4.0, texts[at]) for at, item in enumerate(met))
        )


def opening(folder: Path) -> tuple[float, int]:
    """Returns (seconds of processor time, bytes by which memory grew)."""
    before, start = peak(), time.process_time()
    corpus, _ = read_columns(folder) or (None, None)
    seconds = time.process_time() - start
    assert corpus is not None
    assert len(corpus.items)
    return seconds, peak() - before


def peak() -> int:
    """Returns the peak memory of this process in bytes; `ru_maxrss` would include that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    tyro.cli(main)
