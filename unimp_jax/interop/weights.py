"""Files of weights as one mapping: key -> shape and type, and the array when it is asked for, one at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydantic
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


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """An array in a file.

    Attributes:
      kind: the type of its numbers, such as float32; of what is stored so, where reading makes floats of it.
      read: reads it.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """The arrays of a file or folder, by key.

    Attributes:
      name: of the file or folder, for messages.
    """

    name: str
    arrays: Mapping[str, Stored]


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


def read_safetensors(path: Path) -> dict[str, Stored]:
    """
    Raises:
      WeightsError: the file is missing, truncated or no safetensors file.
    """
    refuse_stand_in(path, "safetensors")
    try:
        file = safe_open(path, framework="numpy", backend="pread")  # pages of a mapped file would stay in memory
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: truncated, or no safetensors file ({reason(error)})") from error
    return {
        key: Stored(
            tuple(array.get_shape()),
            KINDS.get(array.get_dtype(), array.get_dtype()),
            functools.partial(file.get_tensor, key),
        )
        for key, array in slices.items()
    }


def read_files(paths: Iterable[Path], name: str) -> Weights:
    """
    Raises:
      WeightsError: a file cannot be read whole, or two have the same key.
    """
    arrays: dict[str, Stored] = {}
    where: dict[str, Path] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            found = read_safetensors(path)
        elif path.suffix == ".gguf":
            from unimp_jax.interop.gguf import read_gguf

            found = read_gguf(path)
        else:
            from unimp_jax.interop.torch_files import read_torch

            found = read_torch(path)
        for key in found.keys() & arrays.keys():
            raise WeightsError(f"{path}: {key} is in {where[key].name} as well")
        arrays |= found
        where |= dict.fromkeys(found, path)
    return Weights(name, arrays)


Aliases = Sequence[tuple[re.Pattern[str], str]]
"""Patterns in keys, and what stands for them in the one name that an array has here; one after the other."""


def canonical(key: str, aliases: Aliases) -> str:
    """The one name of an array among those that wrappers and versions give it."""
    for pattern, replacement in aliases:
        key = pattern.sub(replacement, key)
    return key


def renamed(weights: Weights, rename: Callable[[str], str]) -> Weights:
    """Weights under other keys. Keys that become the same must hold equal arrays, of which one is read.

    Raises:
      WeightsError: they do not.
    """
    arrays: dict[str, tuple[str, Stored]] = {}
    for key, array in weights.arrays.items():
        other, first = arrays.setdefault(rename(key), (key, array))
        # That one of them is of another type is reported when it is to be used.
        if other != key and {first.kind, array.kind} <= set(FLOATS) and not same(first, array):
            raise WeightsError(f"{weights.name}: {key} should be a copy of {other}, and differs")
    return Weights(weights.name, {key: array for key, (_, array) in arrays.items()})


def same(one: Stored, other: Stored) -> bool:
    """Whether two arrays are equal bit for bit."""
    return (one.shape, one.kind) == (other.shape, other.kind) and one.read().tobytes() == other.read().tobytes()


def open_weights(path: Path) -> Weights:
    """The weights of a folder (safetensors or `.bin`, with or without an index, or GGUF) or of one file.

    Raises:
      WeightsError: there are none, or they cannot be read whole.
    """
    if path.is_file():
        return read_files([path], str(path))
    if not path.is_dir():
        raise WeightsError(f"{path} does not exist")
    for index in (path / "model.safetensors.index.json", path / "pytorch_model.bin.index.json"):
        if index.is_file():
            return indexed(index)
    for file in (path / "model.safetensors", path / "pytorch_model.bin"):
        if file.is_file():
            return read_files([file], str(path))
    refuse_shards_without_index(path)
    for pattern in ("*.safetensors", "*.gguf", "*.pt"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return read_files(found, str(found[0]))
    raise WeightsError(
        f"{path}: no model.safetensors, pytorch_model.bin (or an index of their shards), nor a single .gguf or .pt"
    )


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
    weights = read_files([index.parent / name for name in sorted(set(map_.values()))], str(index.parent))
    absent = set(map_) - weights.arrays.keys()
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


def read_described(path: Path, kind: type[D]) -> D:
    """A dataclass that was written as JSON.

    Raises:
      WeightsError: the file is missing, or does not say what such a dataclass has.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


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
