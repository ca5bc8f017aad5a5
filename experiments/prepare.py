"""`unimp prepare`: the options of `data_pipelines.prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.prepare import prepare
from data_pipelines.sources.checks import OnBad
from data_pipelines.sources.registry import SOURCES
from data_pipelines.sources.selection import SourceSelection
from experiments.places import Place
from experiments.terminal import clean_lines


def prepare_command(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=f"One of {', '.join(SOURCES)}.")],
    folder: Place = Path("data"),
    source_dir: Path | None = None,
    name: str | None = None,
    on_bad: OnBad = "refuse",
    selection: Annotated[SourceSelection, tyro.conf.arg(name="")] = SourceSelection(),
    beam_options: str | None = None,
) -> None:
    """Turn a source's own files into records.

    Args:
      folder: where records go, on the disk or in an object store (s3://BUCKET/FOLDER, gs://BUCKET/FOLDER).
      source_dir: the source's own files; by default those that come with this project, or the publisher's.
      name: what the records are called (as data.source); by default as the source.
      on_bad: bad records are an error, or are left out and listed.
      beam_options: records are encoded in an Apache Beam pipeline with these options ("--runner=DirectRunner").
    """
    prepared = prepare(source, folder, source_dir, on_bad, selection, name, beam_options)
    print(clean_lines(str(prepared)))
