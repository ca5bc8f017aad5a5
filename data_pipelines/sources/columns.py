"""Columns of a table, checked: whoever and whatever is named, ratings and times."""

from __future__ import annotations

import dataclasses

import polars as pl

from data_pipelines.sources.checks import SAMPLE
from data_pipelines.sources.tables import Table, text
from data_pipelines.sources.times import Clock

NUMBER = r"^-?[0-9]{1,18}(\.[0-9]{1,18})?$"
WHOLE = r"^-?[0-9]{1,19}(\.0{1,18})?$"
IDENTIFIER = r"^[^\s\x00-\x1f\x7f-\x9f]+$"


def identifiers(table: Table, column: str) -> Table:
    """The rows where it is text without white space."""
    return table.keep(
        text(column).str.contains(IDENTIFIER),
        lambda row: f"field {column!r} is {row[column][:40]!r}; it must be an identifier, without white space",
        of=column,
    )


def whole_numbers(table: Table, column: str) -> Table:
    """The rows where it is a whole number in digits, which stays text; 1.0 is none, for others may write 1."""
    return table.keep(
        text(column).str.contains(r"^[0-9]+$"),
        lambda row: f"field {column!r} is {row[column][:40]!r}; it must be a whole number, in digits",
        of=column,
    )


def ratings(table: Table, column: str, least: float, most: float) -> Table:
    """The rows where it is a number on the scale, as float64."""
    scale = f"from {least:g} to {most:g}"
    table = table.keep(
        text(column).str.contains(NUMBER),
        lambda row: f"field {column!r} is {row[column][:40]!r}; it must be a number {scale}",
        of=column,
    )
    table = dataclasses.replace(table, rows=table.rows.with_columns(text(column).cast(pl.Float64)))
    return table.keep(
        pl.col(column).is_between(least, most), lambda row: f"field {column!r} is {row[column]}; it must be {scale}"
    )


def times(table: Table, column: str, *, counted: bool = False) -> Table:
    """The rows where it is a time, in seconds since 1970, whatever the file's unit, as int64.

    Args:
      counted: as of `Clock`.
    """
    whole = text(column).str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    table = table.keep(
        text(column).str.contains(WHOLE) & whole.is_not_null(),
        lambda row: f"field {column!r} is {row[column][:40]!r}; it must be a whole number: seconds since 1970",
    )
    rows = table.rows.with_columns(whole.alias(column))
    clock = Clock(rows[column][:SAMPLE].to_list(), counted=counted)
    seconds = clock.expression(pl.col(column))
    table = dataclasses.replace(table, rows=rows)
    table = table.keep(seconds.is_not_null(), lambda row: clock.wrong(column, row[column]))
    return dataclasses.replace(table, rows=table.rows.with_columns(seconds.alias(column)))
