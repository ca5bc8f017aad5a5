"""What the tests of other packages' weights share: models from starts, batches, random values, weights on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.unimp_jax.models import drawn
from unimp_jax.batch import Batch
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.loading import load_values
from unimp_jax.interop.start import read_start, start_values
from unimp_jax.model import ModelConfig, UniMP


def batch_of(tokens, segments, positions, image_index, images, image_segments) -> Batch:
    """A batch that asks for nothing."""
    nothing = np.zeros((len(tokens), 1), np.int32)
    return Batch(
        tokens, segments, positions, image_index, images, image_segments, nothing, nothing, nothing * 1.0, nothing
    )


def text_batch(tokens: np.ndarray, image_size: int) -> Batch:
    """Rows of text alone, one segment each."""
    rows, length = tokens.shape
    ones = np.ones_like(tokens)
    images = np.zeros((rows, 1, image_size, image_size, 3), np.float32)
    return batch_of(tokens, ones, ones * np.arange(length), -ones, images, np.zeros((rows, 1), np.int32))


@nnx.jit
def all_logits(model: UniMP, batch: Batch) -> jax.Array:
    return model.logits(model.hidden(batch))


def imported(config: ImportConfig, folder: Path, others: ModelConfig | None = None) -> UniMP:
    """A model, the imported parts as the start has them, the others as in `others`, drawn at random."""
    import_weights(config, folder)
    return from_start(folder, others)


def from_start(folder: Path, others: ModelConfig | None = None) -> UniMP:
    """The start's new tokens are base rows of the model, as in training."""
    geometry = read_start(folder).geometry.of_model(others or ModelConfig(compute_dtype="float32"))
    decoder = geometry.decoder
    decoder = dataclasses.replace(decoder, vocab_size=decoder.vocab_size + decoder.new_tokens, new_tokens=0)
    geometry = dataclasses.replace(geometry, decoder=decoder)
    graph, state = nnx.split(drawn(geometry))
    (state,) = load_values((state,), start_values(folder, geometry))
    return nnx.merge(graph, state)


def randomised(model: UniMP, seed: int = 0, deviation: float = 0.3) -> UniMP:
    """A model in which nothing is where it starts: what is all zeros or ones (norms, biases, gates) is moved."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(model)

    def moved(x: jax.Array) -> jax.Array:
        noise = deviation * rng.normal(size=x.shape).astype(np.float32)
        return jnp.asarray(np.asarray(x) + noise) if np.ptp(np.asarray(x)) == 0 else x

    return nnx.merge(graph, jax.tree.map(moved, state))


def shake(module, seed: int = 0, deviation: float = 0.3) -> None:
    """The same for a torch module, whose matrices are drawn anew, wide enough for logits to differ."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2 or "alpha" in name:
                parameter += deviation * noise
            elif "embed" in name or "wte" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)


def write_config(folder: Path, described: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def weight_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors*"))}
