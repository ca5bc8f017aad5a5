"""Files of weights as one mapping: key -> shape, and the array when it is asked for, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.stand_ins import refuse_stand_in

TOKENIZER_FILES = ("*.model", "*.txt", "tokenizer*", "special_tokens_map.json", "added_tokens.json")
FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The types of weights."""
ONE_LINE = re.compile(r"\s+")
KINDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""What safetensors calls a type -> its name."""
UNQUANTISED = (
    "dequantise them first, or take the publisher's weights in bfloat16, float16 or float32 (most often the model of "
    "the same name without GPTQ, AWQ, FP8, INT8 or 4bit in it)"
)
"""What to do with weights whose numbers mean something else."""
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin|\.gguf)")

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

    def kind(self, key: str) -> str:
        """The type of an array's numbers, such as float32; of what is stored so, where reading makes floats of it."""
        ...

    def read(self, key: str) -> np.ndarray: ...

    def order(self, key: str) -> int: ...


def reason(error: BaseException) -> str:
    return ONE_LINE.sub(" ", str(error))[:200] or type(error).__name__


def understood(path: Path, read: Callable[[D], G], described: D) -> G:
    """`read(described)`, the geometry that a configuration describes.

    Raises:
      WeightsError: it describes none, or one whose weights are quantised.
    """
    if isinstance(described, dict) and (how := described.get("quantization_config")):
        kind = how.get("quant_method", "of an unnamed kind") if isinstance(how, dict) else how
        raise WeightsError(
            f"{path}: its config.json says that the weights are quantised ({kind}): {UNQUANTISED}; where they are not, "
            "take quantization_config out of it"
        )
    try:
        return read(described)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        LookupError,
    ) as error:  # whatever its values lead to
        if str(error).startswith(str(path)):
            raise
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
        self._kinds: dict[str, str] = {}
        for number, path in enumerate(self._paths):
            file = self._file(number)
            for key in file.keys():  # noqa: SIM118 (no mapping)
                if key in self._where:
                    raise WeightsError(f"{path}: {key} is in {self._paths[self._where[key]].name} as well")
                array = file.get_slice(key)
                self._where[key], self._shapes[key] = number, tuple(array.get_shape())
                self._kinds[key] = KINDS.get(array.get_dtype(), array.get_dtype())

    def _file(self, number: int) -> Any:
        if self._open[0] != number:
            path = self._paths[number]
            self._open = (-1, None)  # so that two are never mapped at once
            refuse_stand_in(path, "safetensors")
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

    def kind(self, key: str) -> str:
        return self._kinds[key]

    def read(self, key: str) -> np.ndarray:
        return self._file(self._where[key]).get_tensor(key)

    def order(self, key: str) -> int:
        return self._where[key]


class View:
    """Arrays of other weights, under keys of their own."""

    def __init__(self, arrays: Mapping[str, tuple[Weights, str]], name: str):
        """`arrays`: key -> (the weights that have it, its key there)."""
        self.name, self._arrays = name, arrays

    def keys(self) -> Iterable[str]:
        return self._arrays

    def shape(self, key: str) -> tuple[int, ...]:
        weights, original = self._arrays[key]
        return weights.shape(original)

    def kind(self, key: str) -> str:
        weights, original = self._arrays[key]
        return weights.kind(original)

    def read(self, key: str) -> np.ndarray:
        weights, original = self._arrays[key]
        return weights.read(original)

    def order(self, key: str) -> int:
        weights, original = self._arrays[key]
        return weights.order(original)


class Renamed(View):
    """Weights under other keys."""

    def __init__(self, weights: Weights, rename: Callable[[str], str]):
        """Keys that become the same must hold equal arrays, of which one is read.

        Raises:
          WeightsError: they do not.
        """
        arrays: dict[str, tuple[Weights, str]] = {}
        for key in weights.keys():  # noqa: SIM118 (no mapping)
            _, other = arrays.setdefault(rename(key), (weights, key))
            if other == key:
                continue
            if not {weights.kind(other), weights.kind(key)} <= set(FLOATS):
                continue  # which is reported when one of them is to be used
            if weights.shape(other) != weights.shape(key) or not same(weights.read(other), weights.read(key)):
                raise WeightsError(f"{weights.name}: {key} should be a copy of {other}, and differs")
        super().__init__(arrays, weights.name)


class Joined(View):
    """Weights of several files as one."""

    def __init__(self, parts: Iterable[Weights]):
        """
        Raises:
          WeightsError: two of them have the same key.
        """
        arrays: dict[str, tuple[Weights, str]] = {}
        for part in parts:
            for key in part.keys():  # noqa: SIM118 (no mapping)
                if key in arrays:
                    raise WeightsError(f"{part.name}: {key} is in {arrays[key][0].name} as well")
                arrays[key] = (part, key)
        super().__init__(arrays, ", ".join(dict.fromkeys(part.name for part, _ in arrays.values())))


class FirstRows(View):
    """Weights of which some arrays are cut to their first rows."""

    def __init__(self, weights: Weights, cut: Iterable[str], rows: int):
        super().__init__({key: (weights, key) for key in weights.keys()}, weights.name)  # noqa: SIM118 (no mapping)
        self._cut, self._rows = set(cut), rows

    def shape(self, key: str) -> tuple[int, ...]:
        first, *rest = super().shape(key) or (0,)
        return (min(first, self._rows), *rest) if key in self._cut else super().shape(key)

    def read(self, key: str) -> np.ndarray:
        return super().read(key)[: self._rows] if key in self._cut else super().read(key)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


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
        return torch_files([path], str(path))
    if not path.is_dir():
        raise WeightsError(f"{path} does not exist")
    for index in (path / "model.safetensors.index.json", path / "pytorch_model.bin.index.json"):
        if index.is_file():
            return indexed(index)
    if (path / "model.safetensors").is_file():
        return Safetensors({"model.safetensors": path / "model.safetensors"}, str(path))
    if (path / "pytorch_model.bin").is_file():
        return open_weights(path / "pytorch_model.bin")
    refuse_shards_without_index(path)
    for pattern in ("*.safetensors", "*.gguf", "*.pt"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return open_weights(found[0])
    raise WeightsError(
        f"{path}: no model.safetensors, pytorch_model.bin (or an index of their shards), nor a single .gguf or .pt"
    )


def torch_files(paths: Iterable[Path], name: str) -> Weights:
    from unimp_jax.interop.torch_files import TorchFiles

    return TorchFiles(paths, name)


def refuse_shards_without_index(folder: Path) -> None:
    """
    Raises:
      WeightsError: there are shards of weights, and no index says which of them has what.
    """
    for name in sorted(path.name for path in folder.iterdir()):
        if (shard := SHARD.fullmatch(name)) and int(shard[2]) > 1:
            if shard[3] == ".gguf":
                raise WeightsError(f"{folder}: {name} is a part of a file: join all with `llama-gguf-split --merge`")
            index = f"{shard[1]}{shard[3]}.index.json"
            raise WeightsError(f"{folder}: {name} is there, its index {index} is not: fetch the whole folder anew")


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
    name = str(index.parent)
    weights: Weights = Safetensors(paths, name) if safe else torch_files(paths.values(), name)
    absent = set(map_) - set(weights.keys())
    if absent:
        raise WeightsError(f"{index}: {len(absent)} arrays are in none of the shards, such as {min(absent)}")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
      WeightsError: the file is missing or no JSON object.
    """
    refuse_stand_in(path, "other")
    try:
        read = json.loads(path.read_bytes())  # with a mark of byte order too, and in UTF-16
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
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
