"""Fetches images that a source names by URL into a folder, many at a time; an interrupted run is continued by the next.

    FOLDER/ITEM.jpg        a verified image, whatever its format (other endings such as ITEM.png are accepted)
    FOLDER/failed.jsonl    images that are not requested again: item, url, reason

An existing image is never requested again, nor one whose URL is known not to lead to an image (it is gone, too large,
or not an image). Temporary failures (no connection, a server that is busy or refuses, a truncated image) are retried
within the limits, and then by the next run.
"""

import errno
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError, reason_of
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.fetching import Fetcher, Limits, Unavailable, Unusable
from data_pipelines.sources.images import ImageFiles, try_image

BATCH = 1000
GIVE_UP = 50
"""After this many consecutive temporary failures, nothing more is requested."""


def fault_of(encoded: bytes) -> str:
    """Returns why the bytes are not a complete image with content; "" if they are."""
    try:
        width, height = try_image(encoded)
    except DataError as error:
        return str(error)
    return "a single pixel, used as a placeholder for a missing image" if width * height == 1 else ""


class FetchedImages:
    """Encoded images by item, from a folder of files. If the folder is missing, that is noted and items have none."""

    def __init__(self, folder: Path, faults: Faults, limits: Limits | None = None):
        self._folder, self._faults, self._limits = folder, faults, limits or Limits()
        self._reasons: dict[str, str] = {}
        self._failed: dict[str, str] = {}  # item -> URL
        self._files: ImageFiles | None = None
        self._read_failures()

    def read(self, item: str) -> bytes:
        """Returns the image's bytes, or b"" (noting the fault) if it is missing or cannot be decoded."""
        if not os.path.isdir(self._folder):
            note = f"{self._folder} does not exist, so no item has an image"
            if note not in self._faults.images:
                self._faults.images.append(note)
            return b""
        files, stem = self._known(), _stem(item)
        if stem not in files:
            self._faults.images.append(f"{item}: {self._reasons.get(item, f'{stem}.jpg is missing')}")
            return b""
        try:
            encoded = files.read(stem)
            fault = fault_of(encoded)
        except DataError as error:
            fault = str(error)
        if fault:
            self._faults.images.append(f"{files.name(stem)} is broken ({fault}); delete it to fetch it again")
            return b""
        return encoded

    def _known(self) -> ImageFiles:
        if self._files is None:
            self._files = ImageFiles(self._folder, self._faults)
        return self._files

    def fetch(self, urls: Mapping[str, str]) -> None:
        """Fetches the images that are missing, given by item -> URL; raises DataError if the folder cannot be created
        or written to, or after `GIVE_UP` consecutive temporary failures. Images that were fetched are kept."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self._folder} cannot be created for the images ({error.strerror})") from error
        wanted = [(item, url) for item, url in urls.items() if self._failed.get(item) != url]
        existing, self._files = self._known(), None
        wanted = [(item, url) for item, url in wanted if _stem(item) not in existing]
        in_a_row = 0
        pool = ThreadPoolExecutor(self._limits.connections, "images")
        with Fetcher(self._limits) as fetcher, tqdm(total=len(wanted), desc="images", disable=None) as progress:
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
                                f"{in_a_row} images in a row could not be fetched, the last because: "
                                f"{self._reasons[item]}; fetched images are kept, and the same command continues"
                            )
            finally:
                pool.shutdown(cancel_futures=True)

    def _keep(self, fetcher: Fetcher, item: str, url: str) -> Unusable | Unavailable | None:
        """Fetches one image into the folder, or returns the failure."""
        try:
            encoded = fetcher.get(url)
            if fault := fault_of(encoded):
                raise Unusable(f"not an image: {fault}")
        except (Unusable, Unavailable) as failure:
            return failure
        except Exception as error:  # an unexpected answer of a server affects one image only
            return Unavailable(reason_of(error))
        path = self._folder / f"{_stem(item)}.jpg"
        try:
            with atomic_file(path, shared=True) as partial:
                partial.write_bytes(encoded)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return Unusable("the id of the item is too long for a file name")
            raise self._unwritable(error) from error
        return None

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._folder}: images cannot be written ({error.strerror}); fetched images are kept, and the same "
            "command continues"
        )

    def _note(self, item: str, url: str, fault: Exception) -> None:
        self._reasons[item] = f"{url[:200]}: {fault}"
        if isinstance(fault, Unusable):
            line = json.dumps({"item": item, "url": url, "reason": str(fault)})
            try:
                with (self._folder / "failed.jsonl").open("a", encoding="utf-8") as failed:
                    failed.write(f"\n{line}")  # the line break separates it from a truncated line
            except OSError as error:
                raise self._unwritable(error) from error

    def _read_failures(self) -> None:
        try:
            lines = (self._folder / "failed.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # missing or unreadable: images are requested again
            lines = []
        for line in lines:
            try:
                known = json.loads(line)
                item, url, reason = str(known["item"]), str(known["url"]), str(known["reason"])
            except (ValueError, TypeError, KeyError, RecursionError):  # truncated: the image is requested again
                continue
            self._failed[item], self._reasons[item] = url, f"{url[:200]}: {reason}"


def _stem(item: str) -> str:
    """Returns the file name of an item without its ending, which is safe within the folder and is not a dotfile."""
    name = quote(item, safe="")
    return f"%2E{name[1:]}" if name.startswith(".") else name
