"""Large sources: how long files in H&M's format take to become records, and in how much memory.

    python -m experiments.benchmarks.source_speed --transactions 1000000 3000000 10000000

As in the real files, users buy 23 articles on average, some a few and some thousands, some articles far more often than
others, and ids of users have 64 digits; there are no images. The core of 8 and 5 is timed alone, in a process that has
read the files, and `unimp prepare` with that core as a whole, in another; a process's peak is all that it ever had in
memory, libraries included.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import tyro

from data_pipelines.prepare import prepare
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.hm import ARTICLE, read_articles, read_purchases
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import codes, k_core
from experiments.benchmarks.measuring import in_own_process, peak_bytes, print_header, print_row

USER_CORE, ITEM_CORE = 8, 5
A_USER, ARTICLES, DAYS = 23, 105_542, 734


def write_files(folder: Path, transactions: int, seed: int) -> None:
    """`articles.csv` and `transactions_train.csv`, in order of time."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(ARTICLES)
    ids = pl.Series(100_000_001 + 17 * numbers).cast(pl.String).str.zfill(10)
    words = {name: pl.Series(numbers % 97).cast(pl.String) + f" {name}" for name in ARTICLE[1:]}
    pl.DataFrame({"article_id": ids, **words}).write_csv(folder / "articles.csv")
    users = transactions // A_USER
    names = pl.Series(rng.integers(0, 2**63, users)).cast(pl.String).str.zfill(64)
    buyers = (users * rng.random(transactions) ** 2).astype(np.int64)
    bought = (ARTICLES * rng.random(transactions) ** 2).astype(np.int64)
    day = pl.date_range(pl.date(2018, 9, 20), pl.date(2020, 9, 22), eager=True).dt.to_string()
    with (folder / "transactions_train.csv").open("wb") as file:
        for part in np.array_split(np.arange(transactions), -(-transactions // 1_000_000)):
            columns = {
                "t_dat": day[part * DAYS // transactions],
                "customer_id": names[buyers[part]],
                "article_id": ids[bought[part]],
                "price": np.round(rng.random(len(part)), 6),
                "sales_channel_id": 1 + part % 2,
            }
            pl.DataFrame(columns).write_csv(file, include_header=not part[0])


def time_core(folder: str) -> tuple[float, float, int]:
    """(seconds to read, seconds for the core, peak bytes)."""
    start = time.perf_counter()
    articles = read_articles(Path(folder) / "articles.csv", Faults())
    purchases = read_purchases(Path(folder) / "transactions_train.csv", articles["article_id"], Faults())
    read = time.perf_counter()
    k_core(codes(purchases["user"])[0], codes(purchases["article"])[0], USER_CORE, ITEM_CORE)
    return read - start, time.perf_counter() - read, peak_bytes()


def time_prepare(folder: str) -> tuple[float, float, int, int]:
    """(seconds, seconds of processors, interactions that were kept, peak bytes)."""
    selection = SourceSelection(user_core=USER_CORE, item_core=ITEM_CORE)
    start = time.process_time()
    prepared = prepare("hm", Path(folder) / "data", Path(folder), selection=selection)
    return prepared.seconds, time.process_time() - start, prepared.interactions, peak_bytes()


def main(
    transactions: tuple[int, ...] = (1_000_000, 3_000_000, 10_000_000), folder: Path | None = None, seed: int = 0
) -> None:
    """Prints a row for each number of transactions.

    Args:
      folder: where files and records go for the time being; by default where temporary files go.
    """
    print_header(["transactions", "read", "core", "peak", "prepare", "of processors", "kept", "kept/s", "peak"])
    for count in transactions:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            write_files(Path(name), count, seed)
            read, core, core_peak = in_own_process(time_core, name)
            seconds, busy, kept, peak = in_own_process(time_prepare, name)
        print_row(
            [
                f"{count:,}", f"{read:.1f} s", f"{core:.2f} s", f"{core_peak / 2**20:,.0f} MiB", f"{seconds:.1f} s",
                f"{busy:.1f} s", f"{kept:,}", f"{kept / seconds:,.0f}", f"{peak / 2**20:,.0f} MiB",
            ]
        )  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
