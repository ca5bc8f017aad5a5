"""A language model of a few thousand numbers in two shards, and what importing something bad says."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unimp_jax.interop.support import write_config
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.language import llama, llama_config
from unimp_jax.interop.layout import WeightsError, model_shapes, placements
from unimp_jax.model import GatedCrossAttentionConfig, ModelConfig

LLAMA = {
    "model_type": "llama", "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def arrays() -> dict[str, np.ndarray]:
    decoder = llama_config(LLAMA)
    config = ModelConfig(decoder=decoder, gated=GatedCrossAttentionConfig(every=2))
    rng = np.random.default_rng(0)
    wanted = placements(llama(decoder), model_shapes(config))
    return {piece.key: rng.normal(size=piece.their_shape).astype(np.float32) for piece in wanted}


def write_llama(folder: Path) -> Path:
    """The model in a new folder, which is returned."""
    write_config(folder, LLAMA)
    weights = arrays()
    names = sorted(weights)
    files = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for name, keys in files.items():
        save_file({key: weights[key] for key in keys}, folder / name)
    write_index(folder, {key: name for name, keys in files.items() for key in keys})
    return folder


def write_index(folder: Path, map_: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": map_}))


def refused(config: ImportConfig, tmp_path: Path) -> str:
    """What is said; nothing may appear beside the target or in it."""
    place = tmp_path / "place"
    with pytest.raises(WeightsError) as error:
        import_weights(config, place / "start")
    assert not place.exists() or not list(place.iterdir())
    said = str(error.value)
    assert "\n" not in said
    return said
