"""Pictures that a source names by URL: fetched many at a time into a folder, with which the next run goes on.

    FOLDER/ITEM.jpg        a picture, whole and tried, whatever its format
    FOLDER/failed.jsonl    what is not asked for again: item, url, reason

A picture that is there is never asked for, nor is one of whose URL it is known that it leads to none (it is gone, too
large, or no picture). What may be otherwise next time (no connection, a server that is busy or refuses, a picture cut
off) is asked for again as the limits say, and then by the next run.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.fetching import Fetcher, Limits, Unavailable, Unusable
from data_pipelines.sources.pictures import BROKEN

BATCH = 1000
GIVE_UP = 50
"""So many pictures one after another that could not be had now: nothing more is asked for."""


def fault_of(encoded: bytes) -> str:
    """Why bytes are not a whole picture of something; "" where they are."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            picture.load()
            width, height = picture.size
    except BROKEN as error:
        return str(error) or type(error).__name__
    return "a single pixel, which stands for none" if width * height == 1 else ""


class FetchedPictures:
    """Encoded pictures by item, from a folder of files; where it is missing, that is noted and no item has one."""

    def __init__(self, folder: Path, faults: Faults, limits: Limits | None = None):
        self._folder, self._faults, self._limits = folder, faults, limits or Limits()
        self._reasons: dict[str, str] = {}
        self._failed: dict[str, str] = {}  # item -> URL
        self._read_failures()

    def read(self, item: str) -> bytes:
        """The picture's bytes, or b"" (and a note) where it is missing or does not decode."""
        if not self._folder.is_dir():
            note = f"{self._folder} does not exist: no item has a picture"
            if note not in self._faults.pictures:
                self._faults.pictures.append(note)
            return b""
        path = self._path(item)
        if not path.exists():
            self._faults.pictures.append(f"{item}: {self._reasons.get(item, f'{path.name} is missing')}")
            return b""
        encoded = path.read_bytes()
        if fault := fault_of(encoded):
            self._faults.pictures.append(f"{path.name} is broken ({fault}); without it, it can be fetched")
            return b""
        return encoded

    def fetch(self, urls: Mapping[str, str]) -> None:
        """Fetches what is not there, of item -> URL.

        Raises:
          DataError: the folder cannot be made, or `GIVE_UP` pictures one after another could not be had now; those that
            were fetched stay.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self._folder} cannot be made ({error.strerror}): pictures need it") from error
        wanted = [(item, url) for item, url in urls.items() if self._failed.get(item) != url]
        wanted = [(item, url) for item, url in wanted if not self._path(item).exists()]
        in_a_row = 0
        pool = ThreadPoolExecutor(self._limits.connections, "pictures")
        with Fetcher(self._limits) as fetcher, tqdm(total=len(wanted), desc="pictures", disable=None) as progress:
            try:
                for start in range(0, len(wanted), BATCH):
                    batch = wanted[start : start + BATCH]
                    faults = pool.map(lambda one: self._keep(fetcher, *one), batch)
                    for (item, url), fault in zip(batch, faults, strict=True):
                        progress.update()
                        in_a_row = in_a_row + 1 if isinstance(fault, Unavailable) else 0
                        if fault:
                            self._note(item, url, fault)
                        if in_a_row == GIVE_UP:
                            raise DataError(
                                f"{in_a_row} pictures one after another could not be fetched, at last "
                                f"{self._reasons[item]}; what was fetched stays, and the same command goes on"
                            )
            finally:
                pool.shutdown(cancel_futures=True)

    def _keep(self, fetcher: Fetcher, item: str, url: str) -> Unusable | Unavailable | None:
        """Puts one picture into the folder, or returns why not."""
        try:
            encoded = fetcher.get(url)
            if fault := fault_of(encoded):
                raise Unusable(f"not a picture: {fault}")
        except (Unusable, Unavailable) as failure:
            return failure
        path = self._path(item)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(encoded)
        os.replace(partial, path)
        return None

    def _note(self, item: str, url: str, fault: Exception) -> None:
        self._reasons[item] = f"{url[:200]}: {fault}"
        if isinstance(fault, Unusable):
            line = json.dumps({"item": item, "url": url, "reason": str(fault)})
            with (self._folder / "failed.jsonl").open("a", encoding="utf-8") as failed:
                failed.write(f"\n{line}")  # a line that a kill cut off ends before this one

    def _read_failures(self) -> None:
        path = self._folder / "failed.jsonl"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                known = json.loads(line)
                item, url, reason = str(known["item"]), str(known["url"]), str(known["reason"])
            except (ValueError, TypeError, KeyError):  # cut off: it will be asked for again
                continue
            self._failed[item], self._reasons[item] = url, f"{url[:200]}: {reason}"

    def _path(self, item: str) -> Path:
        return self._folder / f"{quote(item, safe='')}.jpg"
