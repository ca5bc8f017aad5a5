"""Towers that pictures are measured by, from the files that others publish: a CLIP folder, or Inception's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.interop.clip import clip_config, transformers_clip_whole, vision_root
from unimp_jax.interop.importing import understood
from unimp_jax.interop.layout import Piece, Table, WeightsError, entry, some
from unimp_jax.interop.weights import Weights, open_weights, read_json
from unimp_jax.picture_towers import CLIP, Inception
from unimp_jax.picture_towers.inception import units

M = TypeVar("M", bound=nnx.Module)


def read_clip(folder: Path) -> CLIP:
    """A `CLIPModel` of transformers, or its vision tower alone, with a projection or without.

    Raises:
      WeightsError: the folder is none, or cannot be read whole.
    """
    described, weights = read_json(folder / "config.json"), open_weights(folder)
    projected = "visual_projection.weight" in set(weights.keys())
    config = understood(folder, lambda described: clip_config(described, projected), described)

    table = transformers_clip_whole(vision_root(weights), config)
    return filled(lambda: CLIP(config, nnx.Rngs(0)), table, weights)


def read_inception(path: Path) -> Inception:
    """The Inception v3 of the FID, as `pt_inception-2015-12-05-*.pth` has it, or the same arrays as safetensors.

    Raises:
      WeightsError: the file is something else, or cannot be read whole.
    """
    return filled(lambda: Inception(nnx.Rngs(0)), inception_table(), open_weights(path))


def inception_table() -> Table:
    parts = {"bn.weight": "scale", "bn.bias": "bias", "bn.running_mean": "mean", "bn.running_var": "variance"}
    entries = []
    for name in units():
        entries.append(entry(f"{name}.conv.weight", f"units/{name}/kernel", "o i y x -> y x i o"))
        entries += [entry(f"{name}.{theirs}", f"units/{name}/{ours}", "o -> o") for theirs, ours in parts.items()]
    return entries


def filled(make: Callable[[], M], table: Table, weights: Weights) -> M:
    """A module with these weights, float32.

    Raises:
      WeightsError: an array is missing, or has another shape.
    """
    graph, abstract = nnx.split(nnx.eval_shape(make))
    flat = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(abstract)}
    pieces = list(pieces_of(table, {name: variable.shape for name, (_, variable) in flat.items()}))
    missing = {piece.key for piece in pieces} - set(weights.keys())
    if missing:
        raise WeightsError(f"{weights.name}: {len(missing)} arrays are missing that this tower has: {some(missing)}")
    values = {name: np.empty(variable.shape, np.float32) for name, (_, variable) in flat.items()}
    for piece in pieces:
        shape, right = weights.shape(piece.key), piece.their_shape
        if shape != right:
            raise WeightsError(f"{weights.name}: {piece.key} has shape {shape}, the tower asks for {right}")
        values[piece.entry.ours[0]][piece.index] = piece.to_ours(weights.read(piece.key))[0]
    state = [(path, variable.replace(jnp.asarray(values[name]))) for name, (path, variable) in flat.items()]
    return nnx.merge(graph, nnx.from_flat_state(state))


def pieces_of(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Every array that the table asks of theirs, which together are all that the module has."""
    assert sorted(shapes) == sorted(one.ours[0] for one in table), "the table names each parameter once"
    for one in table:
        shape = tuple(shapes[one.ours[0]])
        if one.stack == "one":
            yield Piece(one.theirs, one, (), shape)
        else:
            yield from (Piece(one.theirs.format(layer), one, (layer,), shape[1:]) for layer in range(shape[0]))
