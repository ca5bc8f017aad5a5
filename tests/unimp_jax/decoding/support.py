"""Models whose answers depend on all that came before, and prompts for them: packed, padded and single."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.unimp_jax.interop.support import randomised
from tests.unimp_jax.interop.test_idefics import geometry
from tests.unimp_jax.models import drawn
from unimp_jax.batch import Batch
from unimp_jax.model import DecoderConfig, GatedCrossAttentionConfig, ModelConfig, UniMP


def distinguished(model: UniMP, factor: float) -> UniMP:
    """All weights so many times as large, so that what is said depends on what was said."""
    graph, state = nnx.split(randomised(model, deviation=0.5))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(np.float32(factor) * np.asarray(x)), state))


IDEFICS = geometry(every=2, new_tokens=3, qk_norm=True, gate="channel", kv_heads=2)
NEOX = dataclasses.replace(
    IDEFICS,
    decoder=DecoderConfig(
        vocab_size=61, new_tokens=3, width=48, layers=2, heads=4, mlp_width=64, parallel_residual=True
    ),
    gated=GatedCrossAttentionConfig(every=1, heads=2, head_dim=8, attend="all_earlier_images"),
)  # fmt: skip
MPT = dataclasses.replace(
    IDEFICS,
    decoder=DecoderConfig(
        vocab_size=61, new_tokens=3, width=48, layers=4, heads=6, mlp_width=64, position="alibi", qk_norm=True,
        bias=False, tie_embeddings=True,
    ),
    gated=GatedCrossAttentionConfig(every=4, heads=2, head_dim=8),
)  # fmt: skip
TOKENS = dataclasses.replace(
    IDEFICS,
    vision=dataclasses.replace(IDEFICS.vision, class_token_out=False),
    decoder=DecoderConfig(
        vocab_size=61, new_tokens=3, width=40, layers=2, heads=4, head_width=8, kv_heads=2, mlp_width=64,
        norm="rms_norm", bias=False, mlp="swiglu", qk_norm=True, qk_norm_per_head=True,
    ),
    fusion="interleaved",
)  # fmt: skip
"""Four tokens an image."""
GEOMETRIES = {"idefics": IDEFICS, "neox, all images": NEOX, "mpt": MPT, "qwen3, images as tokens": TOKENS}


@functools.cache
def model(name: str = "idefics") -> UniMP:
    """Larger weights are chaotic, and float32 would no longer tell right from wrong.

    At factor 3, log-probabilities of "idefics" move by 5,000 times a relative change of its tower's or resampler's
    weights: float32 rounds them by 3e-4, where search and brute force agree to 1e-12 in float64. At 1.5: 200 times.
    """
    return distinguished(drawn(GEOMETRIES[name]), 1.5)


def rows_of(
    lengths: list[list[int]], config: ModelConfig, *, tokens: int, images: int, slots: int, seed: int = 0
) -> Batch:
    """Rows of prompts of the given lengths: some have no image, some one, some two, each where a marker could stand.

    A prompt's answer slot is its last token; further slots stay empty.
    """
    rng = np.random.default_rng(seed)
    B, size, L = len(lengths), config.vision.image_size, config.image_tokens
    V = config.decoder.vocab_size + config.decoder.new_tokens
    arrays = {
        name: np.zeros((B, tokens), np.int32) for name in ("tokens", "segment_ids", "positions")
    } | {"image_index": np.full((B, tokens), -1, np.int32)}  # fmt: skip
    segments, places, weights = (np.zeros((B, n), np.int32) for n in (images, slots, slots))
    for row, sizes in enumerate(lengths):
        start = shown = 0
        for segment, length in enumerate(sizes, start=1):
            where = slice(start, start + length)
            arrays["tokens"][row, where] = rng.integers(0, V, length)
            arrays["segment_ids"][row, where] = segment
            arrays["positions"][row, where] = np.arange(length)
            count = min((segment + row) % 3, images - shown)
            index = np.full(length, -1)
            begins = [1 + (1 + L) * number for number in range(count)]
            count = sum(begin + L <= length for begin in begins)
            for number in range(count):
                index[begins[number] :] = shown + number
                segments[row, shown + number] = segment
            arrays["image_index"][row, where] = index
            places[row, segment - 1], weights[row, segment - 1] = start + length - 1, 1
            start, shown = start + length, shown + count
    nothing = np.zeros((B, slots), np.int32)
    pixels = rng.normal(size=(B, images, size, size, 3)).astype(np.float32)
    return Batch(
        **arrays, images=pixels, image_segment_ids=segments, answer_positions=places, answer_targets=nothing,
        answer_weights=weights.astype(np.float32), answer_tasks=nothing,
    )  # fmt: skip


ROOM = 32


def longer(batch: Batch, row: int, slot: int, answer: list[int]) -> Batch:
    """One prompt alone, followed by an answer: the plain way to continue it. Rows of one size compile once."""
    place = int(batch.answer_positions[row, slot])
    segment = int(batch.segment_ids[row, place])
    mine = np.flatnonzero(np.asarray(batch.segment_ids[row]) == segment)
    last = int(batch.image_index[row, place])

    n = len(answer)
    ends = len(mine) + n - 1

    def row_of(x: jax.Array, more: np.ndarray, filling: int = 0) -> np.ndarray:
        padding = np.full(ROOM - ends - 1, filling)
        return np.concatenate([np.asarray(x[row])[mine], more, padding]).astype(np.int32)[None]

    return dataclasses.replace(
        batch,
        tokens=row_of(batch.tokens, np.array(answer, np.int32)),
        segment_ids=row_of(batch.segment_ids, np.full(n, segment)),
        positions=np.arange(ROOM, dtype=np.int32)[None],
        image_index=row_of(batch.image_index, np.full(n, last), -1),
        images=batch.images[row : row + 1],
        image_segment_ids=batch.image_segment_ids[row : row + 1],
        answer_positions=np.array([[ends]], np.int32),
        answer_weights=np.ones((1, 1), np.float32),
    )  # fmt: skip


@nnx.jit
def next_logits(model: UniMP, batch: Batch) -> jax.Array:
    """[B, A, V], of whole rows."""
    return model(batch)


def jitted(model: UniMP, function):
    """`function(model, *arrays)`, compiled; its values are read off as NumPy arrays."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, *arrays: function(nnx.merge(graph, state), *arrays))
    return lambda *arrays: jax.tree.map(np.asarray, compiled(state, *arrays))


PACKED = [[9, 5, 7], [12, 4]]
PADDED = [[9], [14], [3]]
SINGLE = [[11]]
EOS, PAD = 2, 1


def prompts(kind: str, config: ModelConfig) -> Batch:
    if kind == "packed":
        return rows_of(PACKED, config, tokens=24, images=4, slots=4)
    if kind == "padded":
        return rows_of(PADDED, config, tokens=16, images=2, slots=1)
    return rows_of(SINGLE, config, tokens=11, images=2, slots=1)
