"""Measures `unimp prepare` on generated files: seconds of processor time, and the peak memory of its process.

python -m experiments.benchmarks.prepare_speed --interactions 1000000 10000000 --source hm

Files have the layouts of H&M (ids of users have 64 digits, rows are in order of time) and MovieLens (rows are in order
of users). A user has 23 interactions on average, some a few and some thousands, and some items are far more frequent
than others. There are no images. Files and records are removed.
"""

import concurrent.futures
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import tyro

from data_pipelines.prepare import prepare
from data_pipelines.sources.hm import ARTICLE
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.selection import SourceSelection
from experiments.benchmarks.opening_speed import peak

ITEMS, START, DAYS = 105_542, 1_537_401_600, 734
ROWS = 1_000_000
"""Rows that are generated at a time."""
Layout = Literal["hm", "movielens_small"]


def main(
    interactions: tuple[int, ...] = (1_000_000,),
    source: Layout = "hm",
    a_user: int = 23,
    folder: Path | None = None,
    records: bool = True,
) -> None:
    """Measures each number of interactions, in a process of its own.

    Args:
      interactions: numbers of rows in the file.
      source: whose files are generated; H&M's are cut to users with 8 purchases and articles with 5.
      a_user: number of interactions of a user on average.
      folder: where files and records go; by default where temporary files go.
      records: whether records are written; if not, files are read and sorted, and all histories gone through.
    """
    for count in interactions:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            write_files(Path(name), source, count, a_user)
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                kept, seconds, before, most = pool.submit(timed, name, source, records).result()
        print(
            f"{source}, {count:,} interactions of {count // a_user:,} users, {kept:,} kept: {seconds:.0f} s of "
            f"processor time, {most / 1e6:,.0f} MB at most ({before / 1e6:,.0f} MB of libraries)",
            flush=True,
        )


def write_files(folder: Path, source: Layout, count: int, a_user: int) -> None:
    """Writes the source's files of items and of `count` interactions."""
    rng, users, numbers = np.random.default_rng(0), max(1, count // a_user), np.arange(ITEMS)
    if source == "hm":
        ids, names = pl.Series(100_000_001 + 17 * numbers), pl.Series(rng.integers(0, 2**63, users))
        ids, names = (of.cast(pl.String).str.zfill(digits) for of, digits in ((ids, 10), (names, 64)))
        words = {name: pl.Series(numbers % 97).cast(pl.String) + f" {name}" for name in ARTICLE[1:]}
        pl.DataFrame({"article_id": ids, **words}).write_csv(folder / "articles.csv")
    else:
        ids, names = pl.Series(1 + numbers), pl.Series(1 + np.arange(users))
        films = {"movieId": ids, "title": "Film " + ids.cast(pl.String) + " (1995)", "genres": "Drama|War"}
        pl.DataFrame(films).write_csv(folder / "movies.csv")
    day = pl.date_range(pl.date(2018, 9, 20), pl.date(2020, 9, 22), eager=True).dt.to_string()
    name = "transactions_train.csv" if source == "hm" else "ratings.csv"
    with (folder / name).open("wb") as file:
        for start in range(0, count, ROWS):
            rows = np.arange(start, min(start + ROWS, count))
            items = ids[(ITEMS * rng.random(len(rows)) ** 2).astype(np.int64)]
            if source == "hm":
                part = pl.DataFrame(
                    {
                        "t_dat": day[rows * DAYS // count],
                        "customer_id": names[(users * rng.random(len(rows)) ** 2).astype(np.int64)],
                        "article_id": items,
                        "price": 0.05,
                        "sales_channel_id": 1 + rows % 2,
                    }
                )
            else:
                part = pl.DataFrame(
                    {
                        "userId": names[(users * (rows / count) ** 2).astype(np.int64)],
                        "movieId": items,
                        "rating": (1 + rng.integers(10, size=len(rows))) / 2,
                        "timestamp": START + rng.integers(DAYS * 86_400, size=len(rows)),
                    }
                )
            part.write_csv(file, include_header=start == 0)


def timed(folder: str, source: Layout, records: bool) -> tuple[int, float, int, int]:
    """Returns interactions that were kept, seconds of processor time, and peak memory before and after, in bytes."""
    before, start = peak(), time.process_time()
    selection = SourceSelection(user_core=8, item_core=5) if source == "hm" else SourceSelection()
    if records:
        kept = prepare(source, Path(folder) / "data", Path(folder), selection=selection).interactions
    else:
        builder = find_source(source)(
            config="users", data_dir=f"{folder}/data", source_dir=Path(folder), selection=selection
        )
        kept = sum(int(part["item_id"].list.len().sum()) for part in builder.open_source(None).histories())
    return kept, time.process_time() - start, before, peak()


if __name__ == "__main__":
    tyro.cli(main)
