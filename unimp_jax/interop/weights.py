"""Files of weights as one mapping: key -> shape and dtype, and the array when it is requested, one at a time."""

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

from unimp_jax.interop.file_formats import check_file_format
from unimp_jax.interop.layout import WeightsError

TOKENIZER_FILES = ("*.model", "*.txt", "tokenizer*", "special_tokens_map.json", "added_tokens.json")
FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The dtypes of weights."""
ONE_LINE = re.compile(r"\s+")
KINDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""Name of a dtype in safetensors -> its usual name."""
UNQUANTISED = (
    "dequantise the weights first, or use the publisher's weights in bfloat16, float16 or float32 (usually the "
    "model of the same name without GPTQ, AWQ, FP8, INT8 or 4bit in it)"
)
"""Advice for weights that are quantised."""
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin|\.gguf)")

D = TypeVar("D")
G = TypeVar("G")


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """An array in a file, whose numbers have the dtype `kind`, such as float32; it is the stored dtype if reading
    converts them."""

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """The arrays of a file or folder, by key."""

    name: str
    arrays: Mapping[str, Stored]


def reason(error: BaseException) -> str:
    return ONE_LINE.sub(" ", str(error))[:200] or type(error).__name__


def understood(path: Path, read: Callable[[D], G], described: D) -> G:
    """Returns `read(described)`, the model configuration for a description; raises WeightsError if it is invalid, or
    says that the weights are quantised."""
    if isinstance(described, dict) and (how := described.get("quantization_config")):
        kind = how.get("quant_method", "of unknown kind") if isinstance(how, dict) else how
        raise WeightsError(
            f"{path}: its config.json describes quantised weights ({kind}): {UNQUANTISED}; if they are not "
            "quantised, remove quantization_config from it"
        )
    try:
        return read(described)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        LookupError,
    ) as error:  # depends on its values
        if str(error).startswith(str(path)):
            raise
        raise WeightsError(f"{path}: {reason(error)}") from error


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Opens a file; raises WeightsError if it is missing, truncated or not a safetensors file."""
    check_file_format(path, "safetensors")
    try:
        file = safe_open(path, framework="numpy", backend="pread")  # pages of a mapped file would stay in memory
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: truncated, or not a safetensors file ({reason(error)})") from error
    return {
        key: Stored(
            tuple(array.get_shape()),
            KINDS.get(array.get_dtype(), array.get_dtype()),
            functools.partial(file.get_tensor, key),
        )
        for key, array in slices.items()
    }


def read_files(paths: Iterable[Path], name: str) -> Weights:
    """Opens one or more files; raises WeightsError if one cannot be read completely, or two have the same key."""
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
            raise WeightsError(f"{path}: {key} is also in {where[key].name}")
        arrays |= found
        where |= dict.fromkeys(found, path)
    return Weights(name, arrays)


Aliases = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns in names of arrays, and their replacements, applied one after the other."""


def canonical(key: str, aliases: Aliases) -> str:
    """Returns the canonical name of an array, which wrappers and versions of a package name differently."""
    for pattern, replacement in aliases:
        key = re.sub(pattern, replacement, key)
    return key


def renamed(weights: Weights, rename: Callable[[str], str]) -> Weights:
    """Returns weights under other keys; keys that become the same must hold equal arrays, of which one is read, or
    WeightsError is raised."""
    arrays: dict[str, tuple[str, Stored]] = {}
    for key, array in weights.arrays.items():
        other, first = arrays.setdefault(rename(key), (key, array))
        # A dtype that differs is reported when the array is used.
        if other != key and {first.kind, array.kind} <= set(FLOATS) and not same(first, array):
            raise WeightsError(f"{weights.name}: {key} must be a copy of {other}, but differs")
    return Weights(weights.name, {key: array for key, (_, array) in arrays.items()})


def same(one: Stored, other: Stored) -> bool:
    """Returns whether two arrays are equal bit for bit."""
    return (one.shape, one.kind) == (other.shape, other.kind) and one.read().tobytes() == other.read().tobytes()


def open_weights(path: Path) -> Weights:
    """Opens the weights of a folder (safetensors or `.bin`, with or without an index, or GGUF) or of one file; raises
    WeightsError if there are none, or they cannot be read completely."""
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
        f"{path}: there is no model.safetensors or pytorch_model.bin (or an index of their shards), and not "
        "exactly one .gguf or .pt"
    )


def refuse_shards_without_index(folder: Path) -> None:
    """Raises WeightsError if there are shards of weights, but no index of their arrays."""
    for name in sorted(path.name for path in folder.iterdir()):
        if (shard := SHARD.fullmatch(name)) and int(shard[2]) > 1:
            if shard[3] == ".gguf":
                raise WeightsError(
                    f"{folder}: {name} is one part of a split file; join the parts with `llama-gguf-split --merge`"
                )
            index = f"{shard[1]}{shard[3]}.index.json"
            raise WeightsError(
                f"{folder}: {name} exists, but its index {index} is missing; download the complete folder again"
            )


def indexed(index: Path) -> Weights:
    """Opens the shards of an index and checks that they contain the arrays that it lists."""
    map_ = read_json(index).get("weight_map")
    if not isinstance(map_, dict) or not map_:
        raise WeightsError(f"{index}: weight_map is missing")
    for name in set(map_.values()):
        if not isinstance(name, str) or name == ".." or Path(name).name != name:
            raise WeightsError(f"{index}: {name!r} is not the name of a file in the same folder")
    weights = read_files([index.parent / name for name in sorted(set(map_.values()))], str(index.parent))
    absent = set(map_) - weights.arrays.keys()
    if absent:
        raise WeightsError(f"{index}: {len(absent)} arrays are missing from the shards, such as {min(absent)}")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises WeightsError if the file is missing or contains anything else."""
    check_file_format(path, "other")
    try:
        read = json.loads(path.read_bytes())  # bytes, for byte order marks and UTF-16
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({reason(error)})") from error
    if not isinstance(read, dict):
        raise WeightsError(f"{path}: not a JSON object")
    return read


def read_described(path: Path, kind: type[D]) -> D:
    """Reads a dataclass from JSON; raises WeightsError if the file is missing, or does not describe one."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def locate(path_or_id: str) -> Path:
    """Returns a local path, or downloads configuration, tokenizer and weights of a model from the Hugging Face hub
    (only safetensors if there are any).

    Raises:
      WeightsError: It is neither a path nor a model of the hub.
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
    except Exception as error:  # from the hub, the network or the disk
        raise WeightsError(
            f"{path_or_id}: no such file or folder, and it cannot be loaded from the Hugging Face hub ({reason(error)})"
        ) from error
