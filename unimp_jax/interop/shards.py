"""Folders that appear whole or not at all, and weights written into them shard by shard."""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from data_pipelines.atomic import atomic_folder
from unimp_jax.interop.layout import WeightsError

SHARD_BYTES = 5 * 10**9


def refuse_existing(path: Path) -> None:
    """
    Raises:
      WeightsError: `path` is there already.
    """
    if path.exists():
        raise WeightsError(f"{path} is there already; name another folder, or remove it")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when the context is left without an error, else vanishes.

    Raises:
      WeightsError: `path` is there already, or there is no room.
    """
    refuse_existing(path)
    try:
        with atomic_folder(path, shared=True) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:  # the second for a full disk too
        raise WeightsError(f"{path} could not be written: {getattr(error, 'strerror', None) or error}") from error


class ShardWriter:
    """Arrays into `model-00001-of-00003.safetensors` … and their index, or into one `model.safetensors`.

    An array is held until its shard is full, so one shard is in memory at a time. Use as a context.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES):
        self._folder, self._limit = folder, shard_bytes
        self._shard: dict[str, np.ndarray] = {}
        self._held = self._total = 0
        self._files: list[list[str]] = []

    def add(self, key: str, array: np.ndarray) -> None:
        if self._shard and self._held + array.nbytes > self._limit:
            self._flush()
        self._shard[key] = kept(array)
        self._held += array.nbytes
        self._total += array.nbytes

    def _flush(self) -> None:
        # The metadata is what transformers looks for.
        save_file(self._shard, self._folder / f"{len(self._files)}.shard", metadata={"format": "pt"})
        self._files.append(list(self._shard))
        self._shard, self._held = {}, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._shard:
            self._flush()
        count = len(self._files)
        names = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
        names = ["model.safetensors"] if count == 1 else names
        for number, name in enumerate(names):
            (self._folder / f"{number}.shard").rename(self._folder / name).chmod(0o644)
        if count > 1:
            map_ = {key: name for name, keys in zip(names, self._files, strict=True) for key in keys}
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(map_.items()))}
            write_json(self._folder / "model.safetensors.index.json", index)


def kept(array: np.ndarray) -> np.ndarray:
    """A contiguous copy. A large one has pages of its own, which are the system's again as soon as it is freed."""
    if array.nbytes < 2**20:
        return np.ascontiguousarray(array)
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
