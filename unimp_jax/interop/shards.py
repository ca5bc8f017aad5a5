"""Atomic creation of folders, and weights written to them shard by shard."""

import contextlib
import json
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from data_pipelines.atomic import atomic_folder
from data_pipelines.object_store import is_there
from unimp_jax.interop.layout import WeightsError

SHARD_BYTES = 5 * 10**9


def refuse_existing(path: Path) -> None:
    """Checks that a path does not exist yet.

    Raises:
      WeightsError: `path` already exists.
    """
    if is_there(path):
        raise WeightsError(f"{path} already exists; name another folder, or delete it")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, which becomes `path` if the context exits without an error and is removed otherwise.

    Raises:
      WeightsError: `path` already exists, or there is no space.
    """
    refuse_existing(path)
    try:
        with atomic_folder(path, shared=True) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:  # SafetensorError includes a full disk
        raise WeightsError(f"{path} could not be written: {getattr(error, 'strerror', None) or error}") from error


def write_shards(folder: Path, arrays: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `model-00001-of-00003.safetensors` … and their index, or one `model.safetensors`; holds one shard in
    memory."""
    shards: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    held = total = 0

    def flush() -> None:
        # transformers requires this metadata.
        save_file(shard, folder / f"{len(shards)}.shard", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for key, array in arrays:
        if shard and held + array.nbytes > shard_bytes:
            flush()
            held = 0
        shard[key] = kept(array)
        held += array.nbytes
        total += array.nbytes
    if shard:
        flush()
    names = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for number, name in enumerate(names):
        (folder / f"{number}.shard").rename(folder / name).chmod(0o644)
    if len(shards) > 1:
        map_ = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(map_.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def kept(array: np.ndarray) -> np.ndarray:
    """Returns a contiguous copy; a large one has its own pages, which return to the system as soon as it is freed."""
    if array.nbytes < 2**20:
        return np.ascontiguousarray(array)
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
