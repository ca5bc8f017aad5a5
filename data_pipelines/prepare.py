"""Implements `unimp prepare`: converts a source's own files to records, whole or not at all; reports bad records."""

import dataclasses
import json
import os
import re
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from data_pipelines.columns import FOLDER, write_columns
from data_pipelines.disk_cache import FOLDER as CACHE
from data_pipelines.errors import DataError, printable, reason_of
from data_pipelines.folder_replacement import MADE, check_replaceable, replace_folder, temporary_folder
from data_pipelines.object_store import is_remote, marked, put_folder
from data_pipelines.record_features import quiet_tfds
from data_pipelines.records import KINDS, read_items, read_users
from data_pipelines.sources.checks import Faults, OnBad
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import Counts
from data_pipelines.sources.staging import Tally

PARTS = (*KINDS, FOLDER, CACHE)
"""The contents of the folder of a prepared source."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A report of what a prepared source holds and what was wrong with its files."""

    name: str
    source: str
    selection: SourceSelection
    read: Counts | None
    """What the files held before anything was left out; None if the source does not report it."""
    users: int
    items: int
    interactions: int
    images: int
    rated: int
    history_lengths: dict[str, int]
    """Percentiles of the number of interactions per user, by name."""
    never_evaluated: int
    """Users with fewer than two interactions, for whom there is no next interaction to predict."""
    bad_records: list[str]
    bad_images: list[str]
    seconds: float

    def __str__(self) -> str:
        lengths = ", ".join(f"{name} {length}" for name, length in self.history_lengths.items())
        lines = [
            f"{self.name}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions "
            f"({self.rated:,} rated), {self.images:,} images, in {self.seconds:.1f} s",
            f"interactions a user: {lengths}",
        ]
        if self.read and self.read != Counts(self.users, self.items, self.interactions):
            lines.append(
                f"the files held {self.read.users:,} users, {self.read.items:,} items and "
                f"{self.read.interactions:,} interactions"
            )
        if self.never_evaluated:
            lines.append(f"{self.never_evaluated} users have fewer than 2 interactions and are never evaluated")
        for number, kind, faults in (
            (len(self.bad_records), "records left out", self.bad_records),
            (self.items - self.images, "items without image", self.bad_images),
        ):
            if faults:
                lines.append(f"{number:,} {kind}:")
                lines += [f"  {printable(fault)}" for fault in faults[:5]] + (["  …"] if len(faults) > 5 else [])
        return "\n".join(lines)


def prepare(
    source: str,
    folder: Path,
    source_dir: Path | None = None,
    on_bad: OnBad = "refuse",
    selection: SourceSelection = SourceSelection(),
    name: str | None = None,
    beam_options: str | None = None,
) -> Prepared:
    """Writes a source's records to `folder`, replacing any earlier ones, and returns (and saves) a report.

    Args:
      source_dir: the folder of the source's own files; None means the embedded files, or a download from the publisher.
      on_bad: whether a bad record is an error, or is left out and listed.
      name: the name of the prepared source; None means that of the source.
      beam_options: options (such as `--runner`) of an Apache Beam pipeline that encodes the records; its workers must
        see `folder` under the same path.

    Raises:
      DataError: the source is unknown, its files are missing or bad, there is no room for the records, the name is not
        a valid folder name, the folder to replace was not made by this command, or Beam is not installed.
    """
    if is_remote(folder):
        return _prepare_remote(source, folder, source_dir, on_bad, selection, name, beam_options)
    builder_class = find_source(source)
    start = time.perf_counter()
    name = source if name is None else name
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise DataError(f"--name is {name!r}; it must be a folder name of letters, digits, '_', '-', '+' and '.'")
    if source_dir is not None and not os.path.isdir(source_dir):
        raise DataError(f"{source_dir} is not a folder")
    place, faults, tally, opened = folder / name, Faults(on_bad), Tally(), None
    config = tfds.download.DownloadConfig(register_checksums=False, **_beam(beam_options))
    try:
        check_replaceable(place, PARTS, source_dir)
        with temporary_folder(place) as new, quiet_tfds():
            for kind in KINDS:
                builder = builder_class(
                    config=kind,
                    data_dir=str(new),
                    source_dir=source_dir,
                    faults=faults,
                    selection=selection,
                    source=opened,
                    tally=tally,
                )
                builder.download_and_prepare(download_config=config, download_dir=str(folder / "downloads"))
                opened = builder.source
            records = new / source
            write_columns(read_items(source, new), read_users(source, new), records / FOLDER)
            lengths = np.asarray(tally.lengths)
            percentiles: dict[str, Any] = {"least": 0, "median": 50, "95 %": 95, "most": 100}
            prepared = Prepared(
                name=name,
                source=source,
                selection=selection,
                read=opened.read if opened else None,
                users=len(lengths),
                items=tally.items,
                interactions=int(lengths.sum()),
                images=tally.images,
                rated=tally.rated,
                history_lengths={name: int(np.percentile(lengths, p)) for name, p in percentiles.items()},
                never_evaluated=int((lengths < 2).sum()),
                bad_records=faults.records,
                bad_images=faults.images,
                seconds=time.perf_counter() - start,
            )
            (records / MADE).write_text(json.dumps(dataclasses.asdict(prepared), indent=1))
            check_replaceable(place, PARTS, source_dir)
            replace_folder(records, place)
    except DataError:
        raise
    except (tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise DataError(
            f"{source} could not be downloaded, or its checksum is wrong ({reason_of(error)}); give its files "
            "with --source-dir"
        ) from error
    except Exception as error:  # TFDS and ArrayRecord raise errors of many classes, some created dynamically
        raise DataError(f"{folder}: records could not be written ({reason_of(error)}); nothing was saved") from error
    return prepared


def _prepare_remote(
    source: str, folder: Path, source_dir: Path | None, on_bad: OnBad, selection: SourceSelection, name: str | None,
    beam_options: str | None,
) -> Prepared:  # fmt: skip
    """Prepares on the local disk, then uploads; while records are replaced, the object store holds none."""
    place = folder / (name or source)
    mark = marked(place)
    if MADE not in mark.get("files", [MADE]) or (not mark and place.exists()):
        raise DataError(f"{place} was not made by `unimp prepare`; choose another --name or --folder for the records")
    if beam_options is not None:
        raise DataError("--beam-options needs a --folder on a disk that all workers can access, not in an object store")
    with tempfile.TemporaryDirectory() as disk:
        prepared = prepare(source, Path(disk), source_dir, on_bad, selection, name)
        put_folder(Path(disk) / place.name, place)
    return prepared


def _beam(options: str | None) -> dict[str, Any]:
    """Returns the TFDS download options of a Beam pipeline."""
    if options is None:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    except ImportError as error:
        raise DataError(f"Apache Beam cannot be used ({error}): pip install 'unimp_jax[beam]'") from error
    parsed = PipelineOptions(shlex.split(options))
    return {"beam_options": parsed, "beam_runner": parsed.view_as(StandardOptions).runner or "DirectRunner"}
