"""Reads external tables: columns are found by the header, and every refused row is reported with its line.

Arrow reads a file block by block as long as there are no quotes and all rows are complete. The rest is read record by
record, so that a bad record affects only itself: reading continues at the line after the one in which it began. A table
comes in parts, so that memory does not grow with its rows, or as a whole.
"""

import csv
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.csv

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import SAMPLE, Faults
from data_pipelines.sources.reading import UTF_8_MARK, TextLine, open_bytes, read_lines
from data_pipelines.sources.times import Clock

BLOCK = 2**23
"""The number of bytes that Arrow reads at a time."""
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


def frames_of(rows: Iterator[tuple[Any, ...]], schema: Mapping[str, Any]) -> Iterator[pl.DataFrame]:
    """Yields rows as tables of up to `CHUNK` rows each."""
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield pl.DataFrame(chunk, schema, orient="row")


def frame_of(rows: Iterator[tuple[Any, ...]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Returns rows as a table, built in pieces so that few rows are Python objects at a time."""
    return pl.concat([pl.DataFrame(schema=schema), *frames_of(rows, schema)])


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a file that are valid so far. Its methods remove invalid rows and report them with their lines.

    All of them raise `DataError` if most of the first rows of the file are invalid.

    Attributes:
      rows: columns of text; and `line`, the number of the row's first line.
      clocks: the clock of each column of times, which all parts of a file share.
    """

    name: str
    rows: pl.DataFrame
    faults: Faults
    begins: bool = True
    clocks: dict[str, Clock] = dataclasses.field(default_factory=dict)

    def with_columns(self, **columns: pl.Expr) -> Self:
        """Returns the table with columns added or replaced."""
        return dataclasses.replace(self, rows=self.rows.with_columns(**columns))

    def keep(self, right: pl.Expr, tell: Callable[[dict[str, Any]], str], of: str = "") -> Self:
        """Keeps the rows for which `right` holds; `tell` returns what is wrong with a removed row. `of` is the only
        column on which `right` depends, value by value, so that each distinct value is checked once."""
        if of and self.rows.select(pl.col(of).unique()).select(right.fill_null(False).all()).item():
            return self
        good = self.rows.select(right.fill_null(False)).to_series()
        if good.all():
            return self
        for number, row in enumerate(self.rows.filter(~good).iter_rows(named=True)):
            self.faults.bad_record(f"{self.name} line {row['line']}: {tell(row)}")
            if self.begins and not number:
                sample = good[:SAMPLE]
                self.faults.refuse_most(len(self.faults.records) - 1, int((~sample).sum()), len(sample))
        return dataclasses.replace(self, rows=self.rows.filter(good))

    def written_as(
        self, column: str, right: str | pl.Expr, must_be: str, hint: Callable[[str], str] = lambda value: ""
    ) -> Self:
        """Keeps the rows in which a column has the required form: a regular expression, or an expression that is
        true."""

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
        """Keeps the rows with a valid time, converted from the unit of the file to seconds since 1970 as int64;
        `counted` is as for `Clock`."""
        whole = text(column).str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
        right = text(column).str.contains(WHOLE) & whole.is_not_null()
        table = self.written_as(column, right, "a whole number: seconds since 1970").with_columns(**{column: whole})
        if column not in self.clocks:
            self.clocks[column] = Clock(table.rows[column][:SAMPLE].to_list(), counted=counted)
        clock = self.clocks[column]
        seconds = clock.expression(pl.col(column))
        table = table.keep(seconds.is_not_null(), lambda row: clock.wrong(column, row[column]))
        return table.with_columns(**{column: seconds})


def read_csv(path: Path, columns: Sequence[str], faults: Faults, *, needed: bool = True) -> Iterator[Table]:
    """Yields parts of a CSV file with a header, which may have its columns in any order. Empty rows are skipped. Raises
    DataError if the file cannot be read, has no header, lacks a column or, if `needed`, a row, or most of its rows are
    bad."""
    header, names = next(split_records(read_lines(path)), (TextLine(path.name, 1, ""), []))
    names = [name.strip() for name in names]
    check_header(header, names, columns)
    some = pl.any_horizontal(pl.col(column) != "" for column in columns)  # lines may be empty
    parts = (rows.filter(some) for rows in _csv_parts(path, header.number, names, columns, faults))
    return _tables(header.file, parts, faults, needed)


def read_dat(path: Path, columns: Sequence[str], faults: Faults) -> Iterator[Table]:
    """Yields parts, with all columns, of a file without a header, separated by `::`, in UTF-8 or latin-1; raises
    DataError if the file cannot be read, has no row, or most of its rows are bad."""
    lines = (line for line in read_lines(path, other="latin-1") if line.text.strip())
    parts = _by_record(((line, line.text.split("::")) for line in lines), columns, columns, faults)
    return _tables(path.name, parts, faults, needed=True)


def joined(tables: Iterator[Table], columns: Sequence[str]) -> Table:
    """Joins the parts of a file with these columns."""
    parts = list(tables) or [Table("", pl.DataFrame(schema=_schema(columns)), Faults())]
    return dataclasses.replace(parts[0], rows=pl.concat([part.rows for part in parts]))


def _schema(columns: Sequence[str]) -> dict[str, Any]:
    return {**dict.fromkeys(columns, pl.String), "line": pl.Int64}


def _tables(name: str, parts: Iterator[pl.DataFrame], faults: Faults, needed: bool) -> Iterator[Table]:
    clocks: dict[str, Clock] = {}
    begins = True
    for rows in parts:
        if len(rows):
            yield Table(name, rows, faults, begins, clocks)
            begins = False
    if needed and begins and not faults.records:
        raise DataError(f"{name} has no rows, so there is nothing to train on")


def check_header(header: TextLine, names: Sequence[str], columns: Sequence[str]) -> None:
    """Raises DataError, which says what is there instead, if a required column is missing in the header, or occurs
    twice."""
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


def _csv_parts(
    path: Path, skipped: int, names: Sequence[str], columns: Sequence[str], faults: Faults
) -> Iterator[pl.DataFrame]:
    """Yields the rows after the first `skipped` lines in the form of `_by_record`, by Arrow as far as it can."""
    last = skipped  # the number of the last line that was read
    with open_bytes(path) as (_, file):
        for number, block in enumerate(_blocks(file)):
            rows = _by_arrow(block, 0 if number else skipped, names, columns)
            if rows is None:
                break
            yield rows.with_columns(line=pl.int_range(last + 1, last + 1 + len(rows), dtype=pl.Int64))
            last += len(rows)
        else:
            return
    records = itertools.islice(split_records(read_lines(path)), 1, None)  # without the header
    for rows in _by_record(records, names, columns, faults):
        yield rows.filter(pl.col("line") > last)  # what Arrow has read was good


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    r"""Yields whole lines, about `BLOCK` bytes at a time; a line ends in `\n`, `\r\n` or `\r`."""
    rest = b""
    while read := file.read(BLOCK):
        rest += read
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1  # a `\r` at the end may be followed by `\n`
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _by_arrow(block: bytes, skipped: int, names: Sequence[str], columns: Sequence[str]) -> pl.DataFrame | None:
    """Returns columns, as text, of the lines of a block after the first `skipped`; None if there are quotes, an
    incomplete row, or byte-order marks of joined files. Columns are identified by number here, because unused names may
    occur twice."""
    if b'"' in block or UTF_8_MARK in block:
        return None
    wanted = [str(names.index(column)) for column in columns]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(skip_rows=skipped, column_names=list(map(str, range(len(names))))),
            pa.csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted),
        )
    except pa.ArrowInvalid:  # too few fields in a row, or no row: `_by_record` reports it
        return None
    return pl.DataFrame(pl.from_arrow(table)).rename(dict(zip(wanted, columns, strict=True)))


def _by_record(
    records: Iterable[tuple[TextLine, list[str]]], names: Sequence[str], columns: Sequence[str], faults: Faults
) -> Iterator[pl.DataFrame]:
    """Yields columns, as text, and `line` of records, each (first line, fields) as from `split_records`; bad ones are
    reported and left out."""
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

    return frames_of(whole(), _schema(columns))


def split_records(lines: Iterator[TextLine]) -> Iterator[tuple[TextLine, list[str]]]:
    """Yields (first line, fields) of each record of a CSV file; empty lines between records are skipped. What is wrong
    with a record is set as the `fault` of its line. The next record then begins in the following line, whatever quotes
    are open."""
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
