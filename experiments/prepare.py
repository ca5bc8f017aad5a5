"""`unimp prepare`: the command line of `data_pipelines.prepare`."""

from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.prepare import prepare
from data_pipelines.sources.checks import OnBad
from data_pipelines.sources.registry import SOURCES
from data_pipelines.sources.selection import SourceSelection
from experiments.path_options import PathOrURL
from experiments.terminal import clean_lines


def prepare_command(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=f"One of {', '.join(SOURCES)}.")],
    folder: PathOrURL = Path("data"),
    source_dir: Path | None = None,
    name: str | None = None,
    on_bad: OnBad = "refuse",
    selection: Annotated[SourceSelection, tyro.conf.arg(name="")] = SourceSelection(),
    beam_options: str | None = None,
) -> None:
    """Turn a source's own files into records.

    Args:
      folder: folder for the records, on disk or in an object store (s3://BUCKET/FOLDER, gs://BUCKET/FOLDER).
      source_dir: folder of the source's own files; by default those bundled with this project, or the publisher's.
      name: name of the records (for data.source); by default that of the source.
      on_bad: refuse bad records with an error, or leave them out and list them.
      beam_options: encode the records in an Apache Beam pipeline with these options ("--runner=DirectRunner").
    """
    prepared = prepare(source, folder, source_dir, on_bad, selection, name, beam_options)
    print(clean_lines(str(prepared)))
