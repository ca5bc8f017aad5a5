"""LLaMA models in GGUF files: llama.cpp's names, its channel order of rotary heads, and quantised blocks."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from unimp_jax.interop.file_formats import check_file_format
from unimp_jax.interop.language import OURS, embeddings
from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.interop.weights import Stored
from unimp_jax.model import DecoderConfig

WHOLE = ("I8", "I16", "I32", "I64")
"""Integer types; all others are floats, or blocks that are dequantised."""


def table(config: DecoderConfig) -> Table:
    """Returns the table; GGUF pairs adjacent channels of queries and keys for rotation, ours are half a head apart."""
    layer, turned = "blk.{}", "(h half two) d -> d h (two half)"
    pairs = {"two": 2, "half": config.head_dim // 2}
    return [
        *embeddings("token_embd.weight", "output.weight", config),
        *norm("output_norm", "decoder/norm", bias=False),
        *norm(f"{layer}.attn_norm", f"{OURS}/attention_norm", bias=False),
        entry(f"{layer}.attn_q.weight", f"{OURS}/attention/query/kernel", turned, **pairs),
        entry(f"{layer}.attn_k.weight", f"{OURS}/attention/key/kernel", turned, **pairs),
        *into_heads(f"{layer}.attn_v", f"{OURS}/attention/value"),
        *out_of_heads(f"{layer}.attn_output", f"{OURS}/attention/out"),
        *norm(f"{layer}.ffn_norm", f"{OURS}/mlp_norm", bias=False),
        *linear(f"{layer}.ffn_gate", f"{OURS}/mlp/gate"),
        *linear(f"{layer}.ffn_up", f"{OURS}/mlp/up"),
        *linear(f"{layer}.ffn_down", f"{OURS}/mlp/down"),
    ]


def gguf_file(path: Path) -> Path | None:
    """Returns the path if it is a GGUF file, or the only one in a folder without a config.json; otherwise None."""
    if path.suffix == ".gguf":
        return path
    files = [] if (path / "config.json").exists() else list(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def open_reader(path: Path) -> Any:
    """Opens a file with the reader of the gguf package; raises WeightsError if the package is not installed, or the
    file is truncated or does not contain a LLaMA."""
    check_file_format(path, "GGUF")  # reported even without the package
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise WeightsError(f"{path}: needs gguf: pip install 'unimp_jax[gguf]'") from error
    try:
        reader = GGUFReader(path)
    except Exception as error:  # it reads a mapped file without bounds
        raise WeightsError(f"{path}: truncated, or not a GGUF file") from error
    architecture = field(reader, path, "general.architecture")
    if architecture != "llama":
        raise WeightsError(f"{path}: the model is of family {architecture!r}; only GGUF files of LLaMA are supported")
    return reader


def field(reader: Any, path: Path, name: str, default: Any = None) -> Any:
    """Returns the value of a metadata field; raises WeightsError if the file lacks it, and there is no default."""
    found = reader.get_field(name)
    if found is None and default is None:
        raise WeightsError(f"{path}: has no field {name}")
    return default if found is None else found.contents()


def read_gguf(path: Path) -> dict[str, Stored]:
    """Returns the tensors of a file, which are dequantised to float32 when they are read; raises like `open_reader`."""

    def kind(tensor: Any) -> str:
        return tensor.tensor_type.name.lower() if tensor.tensor_type.name in WHOLE else "float32"

    return {
        tensor.name: Stored(their_shape(tensor), kind(tensor), functools.partial(dequantised, path, tensor))
        for tensor in open_reader(path).tensors
    }


def their_shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape[::-1])


def dequantised(path: Path, tensor: Any) -> np.ndarray:
    from gguf.quants import dequantize

    try:
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(their_shape(tensor))
    except (ValueError, IndexError, NotImplementedError) as error:  # the last: a quantisation gguf cannot read
        raise WeightsError(f"{path}: {tensor.name} cannot be read ({error})") from error


def described(path: Path) -> dict[str, Any]:
    """Returns the content of an equivalent `config.json`; raises like `open_reader`, or WeightsError if a field is
    missing."""
    reader = open_reader(path)
    of_file = functools.partial(field, reader, path)
    shapes = {tensor.name: their_shape(tensor) for tensor in reader.tensors}
    if "rope_freqs.weight" in shapes:
        raise WeightsError(
            f"{path}: rotary frequencies are scaled by rope_freqs.weight, which is not supported; use the Hugging "
            "Face folder of the model"
        )
    heads, width = int(of_file("llama.attention.head_count")), int(of_file("llama.embedding_length"))
    head_dim = int(of_file("llama.attention.key_length", width // heads))
    factor = shortest(of_file("llama.rope.scaling.factor", of_file("llama.rope.scale_linear", 1.0)))
    scaling = str(of_file("llama.rope.scaling.type", "none" if factor == 1 else "linear"))  # as llama.cpp reads them
    return {
        "model_type": "llama",
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": width,
        "num_hidden_layers": int(of_file("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(of_file("llama.attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "intermediate_size": int(of_file("llama.feed_forward_length")),
        "rms_norm_eps": shortest(of_file("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {
            "rope_type": "default" if scaling == "none" else scaling,
            "rope_theta": shortest(of_file("llama.rope.freq_base", 10000.0)),
            "factor": factor,
            "partial_rotary_factor": int(of_file("llama.rope.dimension_count", head_dim)) / head_dim,
        },
        "tie_word_embeddings": "output.weight" not in shapes,
    }


def shortest(value: float) -> float:
    """Returns a float32 as the shortest decimal, such as 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))
