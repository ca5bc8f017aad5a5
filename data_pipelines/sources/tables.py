"""Tables of text as others wrote them: read at once, every row that is refused named by its line.

Arrow reads the CSV, for it tells which rows have too few or too many fields; all checks are Polars expressions.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import Faults, read_lines


def read_csv(path: Path, columns: Sequence[str], faults: Faults, *, long_text: bool = False) -> pl.DataFrame:
    """Columns of a CSV file with a header, plain or `.gz`, as text; and `line`, the first of the row's lines.

    Args:
      long_text: quoted fields may go over several lines; if not, columns are kept as categories, each text once.

    Raises:
      DataError: the file does not exist, is damaged, or lacks a column.
    """
    place, first = next(read_lines(path), (f"{path.name} line 1", ""))
    header = next(csv.reader([first.removeprefix("\ufeff")]), [])
    for name in columns:
        if name not in header:
            raise DataError(f"{place}: column {name!r} is missing; there must be {', '.join(columns)}")
    ragged: dict[int, tuple[int, str]] = {}  # by number of the row, which the header is the first of

    def skip(row: Any) -> str:
        ragged[row.number] = row.text.count("\n"), f"{row.actual_columns} fields where {len(header)} should be"
        return "skip"

    kind = pa.string() if long_text else pa.dictionary(pa.int32(), pa.string())
    try:
        table = pa.csv.read_csv(
            path if path.exists() else path.with_name(f"{path.name}.gz"),
            pa.csv.ReadOptions(use_threads=False),  # or rows have no numbers
            pa.csv.ParseOptions(newlines_in_values=long_text, ignore_empty_lines=False, invalid_row_handler=skip),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, kind), include_columns=None if long_text else list(columns)
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())})") from error
    frame = pl.DataFrame(pl.from_arrow(table))
    heights = np.ones(len(frame) + len(ragged), np.int64)
    whole = np.ones(len(heights), bool)
    for number, (more, _) in ragged.items():
        heights[number - 2] += more
        whole[number - 2] = False
    if long_text:
        heights[whole] += frame.select(pl.sum_horizontal(pl.all().str.count_matches("\n"))).to_series().to_numpy()
    lines = 2 + np.cumsum(heights) - heights
    for number, (_, fault) in ragged.items():
        faults.bad_record(f"{path.name} line {lines[number - 2]}: {fault}")
    frame = frame.select(columns).with_columns(line=pl.Series(lines[whole]))
    return frame.filter(pl.any_horizontal(pl.col(columns).cast(pl.String) != ""))  # a line may be empty


def keep(
    frame: pl.DataFrame, right: pl.Expr, tell: Callable[[dict[str, Any]], str], name: str, faults: Faults
) -> pl.DataFrame:
    """The rows for which `right` holds; of the others it is told what is wrong, by their `line` of the file `name`."""
    good = frame.select(right.fill_null(False)).to_series()
    if good.all():
        return frame
    for row in frame.filter(~good).iter_rows(named=True):
        faults.bad_record(f"{name} line {row['line']}: {tell(row)}")
    return frame.filter(good)
