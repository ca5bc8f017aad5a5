"""Logits of the real open-flamingo 2.0.1 from the same weights, a row an example and packed into one row."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from unimp_jax.batch import Batch
from unimp_jax.interop.open_flamingo import load_open_flamingo
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    UniMP,
    VisionConfig,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "open_flamingo"
CASES = ("gpt_neox_every2", "gpt_neox_parallel_every1", "mpt_every4", "mpt_every1")


def model_config(case: dict) -> ModelConfig:
    vision, resampler, gated, language = (
        case[name] for name in ("vision", "resampler", "gated_cross_attention", "language")
    )
    if case["language_family"] == "mpt":
        decoder = DecoderConfig(
            vocab_size=language["vocab_size"],
            width=language["d_model"],
            layers=language["n_layers"],
            heads=language["n_heads"],
            mlp_width=language["d_model"] * language["expansion_ratio"],
            bias=not language["no_bias"],
            position="alibi",
            tie_embeddings=True,
        )
    else:
        decoder = DecoderConfig(
            vocab_size=language["vocab_size"],
            width=language["hidden_size"],
            layers=language["num_hidden_layers"],
            heads=language["num_attention_heads"],
            mlp_width=language["intermediate_size"],
            rotary_fraction=language["rotary_pct"],
            rotary_base=language["rotary_emb_base"],
            parallel_residual=language["use_parallel_residual"],
        )
    return ModelConfig(
        vision=VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            mlp_width=vision["intermediate_size"],
            activation=vision["hidden_act"],
        ),
        resampler=ResamplerConfig(
            layers=resampler["depth"],
            heads=resampler["heads"],
            head_dim=resampler["dim_head"],
            latents=resampler["num_latents"],
            mlp_multiple=resampler["ff_mult"],
        ),
        gated=GatedCrossAttentionConfig(
            every=case["cross_attn_every_n_layers"],
            heads=gated["heads"],
            head_dim=gated["dim_head"],
            mlp_multiple=gated["ff_mult"],
            attend="last_image" if gated["only_attend_immediate_media"] else "all_earlier_images",
        ),
        decoder=decoder,
        compute_dtype="float32",
    )


def a_row_each(io: dict, media: int) -> Batch:
    """Each golden row as one segment; attended tokens alone, moved to the front."""
    rows, length = io["input_ids"].shape
    tokens, segments = np.zeros((2, rows, length), np.int32)
    image_index = np.full((rows, length), -1, np.int32)
    for row in range(rows):
        attended = io["attention_mask"][row] == 1
        count = attended.sum()
        tokens[row, :count] = io["input_ids"][row, attended]
        segments[row, :count] = 1
        image_index[row, :count] = np.cumsum(tokens[row, :count] == media) - 1
    images = np.moveaxis(io["pixel_values"], 2, -1)
    image_segments = (np.arange(images.shape[1]) <= image_index.max(1)[:, None]).astype(np.int32)
    return batch_of(
        tokens, segments, np.tile(np.arange(length), (rows, 1)) * segments, image_index, images, image_segments
    )


def packed(rows: Batch) -> Batch:
    """All rows as the segments of one."""
    used = rows.segment_ids > 0
    number = np.arange(1, len(used) + 1)[:, None]
    first_image = (number - 1) * rows.images.shape[1]
    image_index = np.where(rows.image_index >= 0, rows.image_index + first_image, -1)
    flat = [x[used][None] for x in (rows.tokens, rows.segment_ids * number, rows.positions, image_index)]
    images = rows.images.reshape(1, -1, *rows.images.shape[2:])
    return batch_of(*flat, images, (rows.image_segment_ids * number).reshape(1, -1))


def batch_of(tokens, segments, positions, image_index, images, image_segments) -> Batch:
    nothing = np.zeros((len(tokens), 1), np.int32)
    return Batch(
        tokens, segments, positions, image_index, images, image_segments, nothing, nothing, nothing * 1.0, nothing
    )


@functools.cache
def golden(name: str):
    """(model, rows, the reference's logits at the rows' tokens)"""
    case = json.loads((GOLDEN / name / "config.json").read_text())
    config = model_config(case)
    state = load_open_flamingo(load_file(GOLDEN / name / "model.safetensors"), config)
    model = nnx.eval_shape(lambda: UniMP(config, rngs=nnx.Rngs(0)))
    nnx.update(model, state)
    io = dict(np.load(GOLDEN / name / "io.npz"))
    return model, a_row_each(io, case["media_token_id"]), io["logits"][io["attention_mask"] == 1]


@nnx.jit
def all_logits(model: UniMP, batch: Batch) -> jax.Array:
    return model.logits(model.hidden(batch))


@pytest.mark.parametrize("together", [False, True], ids=["a row each", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_reference(name, together):
    model, rows, expected = golden(name)
    batch = packed(rows) if together else rows
    found = np.asarray(all_logits(model, batch))[batch.segment_ids > 0]
    assert expected.std() > 0.05, "the tolerance is far below what there is to see"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
