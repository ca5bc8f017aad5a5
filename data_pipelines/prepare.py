"""`unimp prepare`: a source's own files in, records out, whole or not at all, with an account of what was wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from data_pipelines.errors import DataError
from data_pipelines.records import KINDS, quiet_tfds, read_items, read_users
from data_pipelines.sources import find_source
from data_pipelines.sources.checks import Faults, OnBad


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a prepared source holds, and what was wrong with its files."""

    source: str
    users: int
    items: int
    interactions: int
    images: int
    rated: int
    history_lengths: dict[str, int]
    """Percentiles of interactions a user, by name."""
    never_evaluated: int
    """Users with fewer than two interactions: nobody can be asked what comes next."""
    bad_records: list[str]
    bad_pictures: list[str]
    seconds: float

    def __str__(self) -> str:
        lengths = ", ".join(f"{name} {length}" for name, length in self.history_lengths.items())
        lines = [
            f"{self.source}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions "
            f"({self.rated:,} rated), {self.images:,} pictures, in {self.seconds:.1f} s",
            f"interactions a user: {lengths}",
        ]
        if self.never_evaluated:
            lines.append(f"{self.never_evaluated} users have fewer than 2 interactions and are never asked about")
        for kind, faults in (("records left out", self.bad_records), ("items without picture", self.bad_pictures)):
            if faults:
                lines.append(f"{len(faults)} {kind}:")
                lines += [f"  {fault}" for fault in faults[:5]] + (["  …"] if len(faults) > 5 else [])
        return "\n".join(lines)


def prepare(source: str, folder: Path, source_dir: Path | None = None, on_bad: OnBad = "refuse") -> Prepared:
    """Writes a source's records to `folder`, in place of any earlier ones, and returns (and saves) the account.

    Args:
      source_dir: the source's own files; None: the embedded ones, or the publisher's, downloaded.
      on_bad: whether a bad record is an error, or left out and listed.

    Raises:
      DataError: the source is unknown, its files are missing or bad, or there is no room for the records.
    """
    builder_class = find_source(source)
    start = time.perf_counter()
    if source_dir is not None and not source_dir.is_dir():
        raise DataError(f"{source_dir} is not a folder")
    faults = Faults(on_bad)
    new, old = folder / f"{source}.partial", folder / f"{source}.old"
    try:
        for left in (new, old):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        with quiet_tfds():
            for kind in KINDS:
                builder = builder_class(config=kind, data_dir=str(new), source_dir=source_dir, faults=faults)
                config = tfds.download.DownloadConfig(register_checksums=False)
                builder.download_and_prepare(download_config=config, download_dir=str(folder / "downloads"))
        prepared = _account(source, new, faults, start)
        (new / source / "prepared.json").write_text(json.dumps(dataclasses.asdict(prepared), indent=1))
        if (folder / source).exists():
            os.replace(folder / source, old)
        os.replace(new / source, folder / source)
    except DataError:
        raise
    except (tfds.download.DownloadError, NonMatchingChecksumError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source} could not be downloaded, or its checksum is wrong ({reason}); give its files with --source-dir"
        ) from error
    except Exception as error:  # TFDS and ArrayRecord raise errors of many classes, some made as they go
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: records could not be written ({reason}); nothing was kept") from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
    return prepared


def _account(source: str, folder: Path, faults: Faults, start: float) -> Prepared:
    items, users = read_items(source, folder), read_users(source, folder)
    images = sum(bool(item.image) for item in items)
    lengths, rated = [], 0
    for user in users:
        lengths.append(len(user.interactions))
        rated += sum(not np.isnan(one.rating) for one in user.interactions)
    if not lengths or not len(items):
        raise DataError(f"{source} has {len(items)} items and {len(lengths)} users: nothing to learn from")
    percentiles: dict[str, Any] = {"least": 0, "median": 50, "95 %": 95, "most": 100}
    return Prepared(
        source=source,
        users=len(lengths),
        items=len(items),
        interactions=sum(lengths),
        images=images,
        rated=rated,
        history_lengths={name: int(np.percentile(lengths, p)) for name, p in percentiles.items()},
        never_evaluated=sum(length < 2 for length in lengths),
        bad_records=faults.records,
        bad_pictures=faults.pictures,
        seconds=time.perf_counter() - start,
    )
