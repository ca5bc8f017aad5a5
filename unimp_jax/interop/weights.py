"""Files of weights as one mapping: key -> shape, and the array when it is asked for, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from unimp_jax.interop.layout import WeightsError

TOKENIZER_FILES = ("*.model", "*.txt", "tokenizer*", "special_tokens_map.json", "added_tokens.json")
ONE_LINE = re.compile(r"\s+")

D = TypeVar("D")
G = TypeVar("G")


class Weights(Protocol):
    """What every kind of file is read as.

    Attributes:
      name: of the file or folder, for messages.
    """

    name: str

    def keys(self) -> Iterable[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str) -> np.ndarray: ...

    def order(self, key: str) -> int: ...


def reason(error: BaseException) -> str:
    return ONE_LINE.sub(" ", str(error))[:200] or type(error).__name__


def understood(path: Path, read: Callable[[D], G], described: D) -> G:
    """`read(described)`, the geometry that a configuration describes.

    Raises:
      WeightsError: it describes none.
    """
    try:
        return read(described)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        LookupError,
    ) as error:  # whatever its values lead to
        raise WeightsError(f"{path}: {reason(error)}") from error


class Safetensors:
    """One or more safetensors files; one of them is open at a time."""

    def __init__(self, paths: Mapping[str, Path], name: str):
        """`paths`: file name -> path.

        Raises:
          WeightsError: a file is missing, truncated or no safetensors file, or two have the same key.
        """
        self.name, self._paths = name, list(paths.values())
        self._open: tuple[int, Any] = (-1, None)
        self._where: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for number, path in enumerate(self._paths):
            file = self._file(number)
            for key in file.keys():  # noqa: SIM118 (no mapping)
                if key in self._where:
                    raise WeightsError(f"{path}: {key} is in {self._paths[self._where[key]].name} as well")
                self._where[key], self._shapes[key] = number, tuple(file.get_slice(key).get_shape())

    def _file(self, number: int) -> Any:
        if self._open[0] != number:
            path = self._paths[number]
            self._open = (-1, None)  # so that two are never mapped at once
            try:
                # Pages of a mapped file would stay in memory.
                self._open = (number, safe_open(path, framework="numpy", backend="pread"))
            except FileNotFoundError as error:
                raise WeightsError(f"{path} does not exist") from error
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path}: truncated, or no safetensors file ({reason(error)})") from error
        return self._open[1]

    def keys(self) -> Iterable[str]:
        return self._where

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def read(self, key: str) -> np.ndarray:
        return self._file(self._where[key]).get_tensor(key)

    def order(self, key: str) -> int:
        return self._where[key]


class TorchFiles:
    """`.pt` or `.bin` files, read as tensors and nothing else (`weights_only`), mapped into memory where possible."""

    def __init__(self, paths: Iterable[Path], name: str):
        """
        Raises:
          WeightsError: torch is not installed; a file is missing, truncated, or has anything but tensors; two have
            the same key.
        """
        self.name = name
        self._tensors: dict[str, Any] = {}
        for path in paths:
            for key, tensor in tensors_of(load_torch(path)).items():
                if key in self._tensors:
                    raise WeightsError(f"{path}: {key} is in another shard as well")
                self._tensors[key] = tensor
        if not self._tensors:
            raise WeightsError(f"{name}: no tensors in it")

    def keys(self) -> Iterable[str]:
        return self._tensors

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def read(self, key: str) -> np.ndarray:
        import torch

        tensor = self._tensors[key].detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def order(self, key: str) -> int:
        return 0


class Callback:
    """Stands for a class that checkpoints of PyTorch Lightning before 1.5 name and make no object of."""


CALLBACKS = [
    f"pytorch_lightning.callbacks.{name}"
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
]


def load_torch(path: Path) -> Any:
    """What a file holds, if that is tensors in plain containers."""
    try:
        import torch
    except ImportError as error:
        raise WeightsError(f"{path}: needs torch: pip install 'unimp_jax[torch]'") from error
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with torch.serialization.safe_globals([(Callback, name) for name in CALLBACKS]):
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, **options)  # the format before torch 1.6
    except Exception as error:  # torch raises whatever its readers do
        raise WeightsError(f"{path}: truncated, or with more in it than tensors ({reason(error)})") from error


def tensors_of(loaded: Any) -> dict[str, Any]:
    """The state dict in a checkpoint, which may be one or have one inside."""
    import torch

    if not isinstance(loaded, Mapping):
        return {}
    for name in ("model_state_dict", "state_dict", "model"):
        if isinstance(loaded.get(name), Mapping):
            return tensors_of(loaded[name])
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}


class Renamed:
    """Weights under other keys."""

    def __init__(self, weights: Weights, rename: Callable[[str], str]):
        """Keys that become the same must hold equal arrays, of which one is read.

        Raises:
          WeightsError: they do not.
        """
        self.name, self._weights = weights.name, weights
        self._original: dict[str, str] = {}
        for key in weights.keys():  # noqa: SIM118 (no mapping)
            other = self._original.setdefault(rename(key), key)
            if other == key:
                continue
            if weights.shape(other) != weights.shape(key) or not same(weights.read(other), weights.read(key)):
                raise WeightsError(f"{self.name}: {key} should be a copy of {other}, and differs")

    def keys(self) -> Iterable[str]:
        return self._original

    def shape(self, key: str) -> tuple[int, ...]:
        return self._weights.shape(self._original[key])

    def read(self, key: str) -> np.ndarray:
        return self._weights.read(self._original[key])

    def order(self, key: str) -> int:
        return self._weights.order(self._original[key])


class Joined:
    """Weights of several files as one."""

    def __init__(self, parts: Iterable[Weights]):
        """
        Raises:
          WeightsError: two of them have the same key.
        """
        self._parts: dict[str, Weights] = {}
        for part in parts:
            for key in part.keys():  # noqa: SIM118 (no mapping)
                if key in self._parts:
                    raise WeightsError(f"{part.name}: {key} is in {self._parts[key].name} as well")
                self._parts[key] = part
        self.name = ", ".join(dict.fromkeys(part.name for part in self._parts.values()))

    def keys(self) -> Iterable[str]:
        return self._parts

    def shape(self, key: str) -> tuple[int, ...]:
        return self._parts[key].shape(key)

    def read(self, key: str) -> np.ndarray:
        return self._parts[key].read(key)

    def order(self, key: str) -> int:
        return self._parts[key].order(key)


class FirstRows:
    """Weights of which some arrays are cut to their first rows."""

    def __init__(self, weights: Weights, cut: Iterable[str], rows: int):
        self.name, self._weights, self._cut, self._rows = weights.name, weights, set(cut), rows

    def keys(self) -> Iterable[str]:
        return self._weights.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        first, *rest = self._weights.shape(key) or (0,)
        return (min(first, self._rows), *rest) if key in self._cut else self._weights.shape(key)

    def read(self, key: str) -> np.ndarray:
        return self._weights.read(key)[: self._rows] if key in self._cut else self._weights.read(key)

    def order(self, key: str) -> int:
        return self._weights.order(key)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


class Arrays:
    """Weights in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str = "weights"):
        self.name, self._arrays = name, arrays

    def keys(self) -> Iterable[str]:
        return self._arrays

    def shape(self, key: str) -> tuple[int, ...]:
        return self._arrays[key].shape

    def read(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def order(self, key: str) -> int:
        return 0


def open_weights(path: Path) -> Weights:
    """The weights of a folder (safetensors or `.bin`, with or without an index, or GGUF) or of one file.

    Raises:
      WeightsError: there are none, or they cannot be read whole.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            return Safetensors({path.name: path}, str(path))
        if path.suffix == ".gguf":
            from unimp_jax.interop.gguf import GGUF

            return GGUF(path)
        return TorchFiles([path], str(path))
    if not path.is_dir():
        raise WeightsError(f"{path} does not exist")
    for index in (path / "model.safetensors.index.json", path / "pytorch_model.bin.index.json"):
        if index.is_file():
            return indexed(index)
    if (path / "model.safetensors").is_file():
        return Safetensors({"model.safetensors": path / "model.safetensors"}, str(path))
    for pattern in ("pytorch_model.bin", "*.safetensors", "*.gguf", "*.pt"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return open_weights(found[0])
    raise WeightsError(
        f"{path}: no model.safetensors, pytorch_model.bin (or an index of their shards), nor a single .gguf or .pt"
    )


def indexed(index: Path) -> Weights:
    """The shards that an index names, each of which must have what the index says."""
    map_ = read_json(index).get("weight_map")
    if not isinstance(map_, dict) or not map_:
        raise WeightsError(f"{index}: has no weight_map")
    for name in set(map_.values()):
        if not isinstance(name, str) or name == ".." or Path(name).name != name:
            raise WeightsError(f"{index}: {name!r} is no name of a file beside it")
    paths = {name: index.parent / name for name in sorted(set(map_.values()))}
    safe = all(path.suffix == ".safetensors" for path in paths.values())
    weights: Weights = Safetensors(paths, str(index.parent)) if safe else TorchFiles(paths.values(), str(index.parent))
    absent = set(map_) - set(weights.keys())
    if absent:
        raise WeightsError(f"{index}: {len(absent)} arrays are in none of the shards, such as {min(absent)}")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
      WeightsError: the file is missing or no JSON object.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({reason(error)})") from error
    if not isinstance(read, dict):
        raise WeightsError(f"{path}: not a JSON object")
    return read


def locate(path_or_id: str) -> Path:
    """A path on disk as it is; else a model of the Hugging Face hub, of which configuration, tokenizer and weights are
    fetched (safetensors alone where there are some).

    Raises:
      WeightsError: it is neither.
    """
    path = Path(path_or_id)
    if path.exists():
        return path
    if path.is_absolute() or path_or_id.count("/") != 1 or path_or_id.startswith((".", "~")):
        raise WeightsError(f"{path_or_id} does not exist")
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().list_repo_files(path_or_id)
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in files) else "*.bin"
        patterns = ["*.json", weights, "*.pt", *TOKENIZER_FILES]
        return Path(snapshot_download(path_or_id, allow_patterns=patterns))
    except Exception as error:  # of the hub, of the network, of the disk
        raise WeightsError(
            f"{path_or_id}: no such file or folder, and not to be had from the Hugging Face hub ({reason(error)})"
        ) from error


def in_file_order(weights: Weights, keys: Iterable[str]) -> Iterator[str]:
    """Keys so that each file is opened once."""
    yield from sorted(keys, key=weights.order)
