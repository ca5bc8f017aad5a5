"""Reads external tables: columns are found by the header, and every refused row is reported with its line.

Arrow reads a file without quotes in which all rows are complete. Any other file is read record by record, so that a bad
record affects only itself: reading continues at the line after the one in which it began.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.csv

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import SAMPLE, Faults
from data_pipelines.sources.reading import UTF_8_MARK, TextLine, open_bytes, read_lines
from data_pipelines.sources.times import Clock

BLOCK = 2**24
CHUNK = 100_000
"""The number of rows held as Python objects at a time."""
LONGEST_FIELD = 2**27
"""The maximum number of characters in a field; a longer field is assumed to be an unclosed quote."""
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
NUMBER = r"^-?[0-9]{1,18}(\.[0-9]{1,18})?$"
WHOLE = r"^-?[0-9]{1,19}(\.0{1,18})?$"
IDENTIFIER = r"^[^\s\x00-\x1f\x7f-\x9f]+$"

csv.field_size_limit(LONGEST_FIELD)  # applies to the whole process; the default is 131,072


def text(column: str) -> pl.Expr:
    """Returns a column as text."""
    return pl.col(column).cast(pl.String)


def frame_of(rows: Iterator[tuple[Any, ...]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Returns rows as a table, built in pieces so that few rows are Python objects at a time."""
    pieces = [pl.DataFrame(schema=schema)]
    while chunk := list(itertools.islice(rows, CHUNK)):
        pieces.append(pl.DataFrame(chunk, schema, orient="row"))
    return pl.concat(pieces)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file that are valid so far. Its methods remove invalid rows and report them with their lines.

    All of them raise `DataError` if most of the first rows are invalid.

    Attributes:
      name: the file name.
      rows: text or categoricals of text; and `line`, the number of the row's first line.
    """

    name: str
    rows: pl.DataFrame
    faults: Faults

    def with_columns(self, **columns: pl.Expr) -> Self:
        """Returns the table with columns added or replaced."""
        return dataclasses.replace(self, rows=self.rows.with_columns(**columns))

    def keep(self, right: pl.Expr, tell: Callable[[dict[str, Any]], str], of: str = "") -> Self:
        """Keeps the rows for which `right` holds.

        Args:
          tell: returns what is wrong with a removed row.
          of: the only column on which `right` depends, value by value, so that each distinct value is checked once.
        """
        if of and self.rows.select(pl.col(of).unique()).select(right.fill_null(False).all()).item():
            return self
        good = self.rows.select(right.fill_null(False)).to_series()
        if good.all():
            return self
        for number, row in enumerate(self.rows.filter(~good).iter_rows(named=True)):
            self.faults.bad_record(f"{self.name} line {row['line']}: {tell(row)}")
            if not number:
                sample = good[:SAMPLE]
                self.faults.refuse_most(len(self.faults.records) - 1, int((~sample).sum()), len(sample))
        return dataclasses.replace(self, rows=self.rows.filter(good))

    def written_as(
        self, column: str, right: str | pl.Expr, must_be: str, hint: Callable[[str], str] = lambda value: ""
    ) -> Self:
        """Keeps the rows in which a column has the required form.

        Args:
          right: a regular expression, or an expression that is true for valid values.
          must_be: a description of valid values.
          hint: returns advice about an invalid value.
        """

        def tell(row: dict[str, Any]) -> str:
            return f"field {column!r} is {row[column][:40]!r}; it must be {must_be}{hint(row[column])}"

        return self.keep(text(column).str.contains(right) if isinstance(right, str) else right, tell, of=column)

    def distinct(self, column: str, what: str) -> Self:
        """Keeps the first row of each value; `what` describes a value."""
        return self.keep(text(column).is_first_distinct(), lambda row: f"{what} {row[column]} occurs twice")

    def identifiers(self, *columns: str) -> Self:
        """Keeps the rows in which these columns are text without white space."""
        table = self
        for column in columns:
            table = table.written_as(column, IDENTIFIER, "an identifier without white space")
        return table

    def whole_numbers(self, column: str) -> Self:
        """Keeps the rows with a whole number in digits, as text; 1.0 is refused, since other files may write 1."""
        return self.written_as(column, r"^[0-9]+$", "a whole number, written in digits")

    def ratings(self, column: str, least: float, most: float) -> Self:
        """Keeps the rows with a number on the scale, converted to float64."""
        scale = f"from {least:g} to {most:g}"
        table = self.written_as(column, NUMBER, f"a number {scale}")
        return table.with_columns(**{column: text(column).cast(pl.Float64)}).keep(
            pl.col(column).is_between(least, most), lambda row: f"field {column!r} is {row[column]}; it must be {scale}"
        )

    def times(self, column: str, *, counted: bool = False) -> Self:
        """Keeps the rows with a valid time, converted from the unit of the file to seconds since 1970 as int64.

        Args:
          counted: as for `Clock`.
        """
        whole = text(column).str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
        right = text(column).str.contains(WHOLE) & whole.is_not_null()
        table = self.written_as(column, right, "a whole number: seconds since 1970").with_columns(**{column: whole})
        clock = Clock(table.rows[column][:SAMPLE].to_list(), counted=counted)
        seconds = clock.expression(pl.col(column))
        table = table.keep(seconds.is_not_null(), lambda row: clock.wrong(column, row[column]))
        return table.with_columns(**{column: seconds})


def read_csv(path: Path, columns: Sequence[str], faults: Faults, *, needed: bool = True) -> Table:
    """Reads columns of a CSV file with a header, which may have them in any order. Empty rows are skipped.

    Args:
      needed: whether at least one row is required.

    Raises:
      DataError: the file cannot be read, has no header, lacks a column or a row, or most of its rows are bad.
    """
    header, names = next(split_records(read_lines(path)), (TextLine(path.name, 1, ""), []))
    names = [name.strip() for name in names]
    check_header(header, names, columns)
    rows = _by_arrow(path, header.number, names, columns)
    if rows is None:
        records = itertools.islice(split_records(read_lines(path)), 1, None)  # without the header
        rows = _by_record(records, names, columns, faults)
    rows = rows.filter(pl.any_horizontal(pl.col(column) != "" for column in columns))  # lines may be empty
    return _table(header.file, rows, faults, needed)


def read_dat(path: Path, columns: Sequence[str], faults: Faults) -> Table:
    """Reads all columns of a file without a header, separated by `::`, in UTF-8 or latin-1.

    Raises:
      DataError: the file cannot be read, has no row, or most of its rows are bad.
    """
    lines = (line for line in read_lines(path, other="latin-1") if line.text.strip())
    rows = _by_record(((line, line.text.split("::")) for line in lines), columns, columns, faults)
    return _table(path.name, rows, faults, needed=True)


def _table(name: str, rows: pl.DataFrame, faults: Faults, needed: bool) -> Table:
    if needed and rows.is_empty() and not faults.records:
        raise DataError(f"{name} has no rows, so there is nothing to train on")
    return Table(name, rows, faults)


def check_header(header: TextLine, names: Sequence[str], columns: Sequence[str]) -> None:
    """Checks that each required column occurs once in the header.

    Raises:
      DataError: a column is missing or occurs twice; the message says what is there instead.
    """
    if header.fault:
        raise DataError(f"{header.place}: {header.fault}")
    needed = ", ".join(columns)
    missing = [column for column in columns if column not in names]
    for mark, what in DELIMITERS.items():
        if missing and {name.strip(' "') for name in header.text.split(mark)} >= set(columns):
            raise DataError(
                f"{header.place}: columns are separated by {what}; they must be separated by commas: {needed}"
            )
    if missing:
        what = "a header " * (len(missing) == len(columns)) + needed
        seen = f"not {header.text[:60]!r}" if header.text.strip() else "but the file is empty"
        raise DataError(f"{header.place}: column {missing[0]!r} is missing; there must be {what}, {seen}")
    for column in columns:
        if names.count(column) > 1:
            raise DataError(f"{header.place}: column {column!r} occurs {names.count(column)} times; it must occur once")


def _by_arrow(path: Path, skipped: int, names: Sequence[str], columns: Sequence[str]) -> pl.DataFrame | None:
    """Reads the rows after the first `skipped` lines with Arrow, in the form of `_by_record`.

    Returns None if there are quotes, an incomplete row, or byte-order marks of joined files. Columns are identified by
    number here, because unused names may occur twice.
    """
    with open_bytes(path) as (_, file):
        blocks = iter(functools.partial(file.read, BLOCK), b"")
        if any(b'"' in block or UTF_8_MARK in block for block in blocks):
            return None
    wanted = [str(names.index(column)) for column in columns]
    with open_bytes(path) as (_, file):
        try:
            table = pa.csv.read_csv(
                file,
                pa.csv.ReadOptions(skip_rows=skipped, column_names=list(map(str, range(len(names))))),
                pa.csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
                pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.dictionary(pa.int32(), pa.string())), include_columns=wanted
                ),
            )
        except pa.ArrowInvalid:  # too few fields in a row, or no row: `_by_record` reports it
            return None
    rows = pl.DataFrame(pl.from_arrow(table.unify_dictionaries())).rename(dict(zip(wanted, columns, strict=True)))
    return rows.with_row_index("line", skipped + 1).with_columns(pl.col("line").cast(pl.Int64))


def _by_record(
    records: Iterable[tuple[TextLine, list[str]]], names: Sequence[str], columns: Sequence[str], faults: Faults
) -> pl.DataFrame:
    """Returns columns, as text, and `line` of records; bad ones are reported and left out.

    Args:
      records: (first line, fields) of each, as from `split_records`.
      names: the names of the fields.
      columns: the names to return.
    """
    places = [names.index(column) for column in columns]

    def whole() -> Iterator[tuple[Any, ...]]:
        for line, fields in faults.watched(records):
            fault = line.fault
            if not fault and len(fields) != len(names):
                fault = f"{len(fields)} fields; expected {len(names)}: {', '.join(names)}"[:200]
            if fault:
                faults.bad_record(f"{line.place}: {fault}")
            else:
                yield *(fields[place] for place in places), line.number

    return frame_of(whole(), {**dict.fromkeys(columns, pl.String), "line": pl.Int64})


def split_records(lines: Iterator[TextLine]) -> Iterator[tuple[TextLine, list[str]]]:
    """Yields (first line, fields) of each record of a CSV file; empty lines between records are skipped.

    What is wrong with a record is set as the `fault` of its line. The next record then begins in the following line,
    whatever quotes are open.
    """
    ahead = deque[TextLine]()

    def following() -> TextLine | None:
        return ahead.popleft() if ahead else next(lines, None)

    while (first := following()) is not None:
        if not first.text.strip():
            continue
        if '"' not in first.text:
            yield first, first.text.split(",")
            continue
        taken = [first]

        def texts(taken: list[TextLine] = taken) -> Iterator[str]:
            yield taken[0].text + "\n"
            while (line := following()) is not None:
                taken.append(line)
                yield line.text + "\n"

        try:
            fields = next(csv.reader(texts(), strict=True))
            yield first._replace(fault=next((line.fault for line in taken if line.fault), "")), fields
        except csv.Error as error:
            ahead.extendleft(reversed(taken[1:]))
            yield first._replace(fault=first.fault or f"not CSV ({error})"), []
