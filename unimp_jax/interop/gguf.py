"""A LLaMA in a GGUF file: llama.cpp's names, permuted rotary heads and quantised blocks, as transformers reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.stand_ins import refuse_stand_in

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = ("I8", "I16", "I32", "I64")
"""Types of whole numbers; all others are floats, or blocks that are dequantised."""
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def transformers_name(name: str) -> str:
    """Names that are not known stay as they are, to be listed as unused."""
    match = BLOCK.fullmatch(name)
    if match and match[2] in LAYER_NAMES:
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"
    return NAMES.get(name, name)


class GGUF:
    """Weights of a GGUF file, dequantised to float32 one at a time, under transformers' names."""

    def __init__(self, path: Path):
        """
        Raises:
          WeightsError: the gguf package is not installed; the file is truncated, or not of a LLaMA.
        """
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise WeightsError(f"{path}: needs gguf: pip install 'unimp_jax[gguf]'") from error
        refuse_stand_in(path, "GGUF")
        self.name = str(path)
        try:
            self._reader = GGUFReader(path)
        except Exception as error:  # it reads a mapped file without bounds
            raise WeightsError(f"{path}: truncated, or no GGUF file") from error
        self.architecture = self._field("general.architecture")
        if self.architecture != "llama":
            raise WeightsError(f"{path}: is of family {self.architecture!r}; of GGUF files, only LLaMA's are known")
        self._tensors = {transformers_name(tensor.name): tensor for tensor in self._reader.tensors}

    def config(self) -> dict[str, Any]:
        """What a `config.json` would say."""
        field = self._field
        scaling = str(field("llama.rope.scaling.type", "none"))
        scaling = "llama3" if "rope_freqs.weight" in self._tensors else scaling
        heads, width = int(field("llama.attention.head_count")), int(field("llama.embedding_length"))
        return {
            "model_type": "llama",
            "vocab_size": self.shape("model.embed_tokens.weight")[0],
            "hidden_size": width,
            "num_hidden_layers": int(field("llama.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(field("llama.attention.head_count_kv", heads)),
            "head_dim": int(field("llama.attention.key_length", width // heads)),
            "intermediate_size": int(field("llama.feed_forward_length")),
            "rms_norm_eps": shortest(field("llama.attention.layer_norm_rms_epsilon")),
            "rope_parameters": {
                "rope_type": "default" if scaling == "none" else scaling,
                "rope_theta": shortest(field("llama.rope.freq_base", 10000.0)),
            },
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }

    def keys(self) -> Iterable[str]:
        return self._tensors

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self._tensors[key].shape[::-1])

    def kind(self, key: str) -> str:
        kind = self._tensors[key].tensor_type.name
        return kind.lower() if kind in WHOLE else "float32"

    def read(self, key: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[key]
        try:
            array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(self.shape(key))
        except (ValueError, IndexError, NotImplementedError) as error:  # the last: a quantisation gguf cannot read
            raise WeightsError(f"{self.name}: {key} cannot be read ({error})") from error
        config, name = self.config(), key.split(".")[-2] if "." in key else ""
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        return unpermute(array, heads[name]) if name in heads else array

    def order(self, key: str) -> int:
        return 0

    def _field(self, name: str, default: Any = None) -> Any:
        field = self._reader.get_field(name)
        if field is not None:
            return field.contents()
        if default is None:
            raise WeightsError(f"{self.name}: has no field {name}")
        return default


def unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """[heads h, D], channels of a head in llama.cpp's order (i beside i + h/2) -> transformers' (halves apart)."""
    rows, width = array.shape
    return array.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def shortest(value: float) -> float:
    """A float32 as it was written down: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
