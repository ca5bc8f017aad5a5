"""Tables lose nothing: each parameter is covered once, and arrays go there and back bit for bit."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimp_jax.interop import idefics, open_flamingo
from unimp_jax.interop.language import gpt_neox, llama, mosaic_gpt, mpt
from unimp_jax.interop.layout import Entry, Placement, WeightsError, model_shapes, placements, unfilled
from unimp_jax.interop.vision import open_clip, tower
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    VisionConfig,
)


def bits(shape, rng) -> np.ndarray:
    """float32 of any bits, NaNs too."""
    return rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@st.composite
def layouts(draw) -> Placement:
    """Any layout that the tables may have, with sizes."""
    ours = draw(st.lists(st.sampled_from("abcdgko"), min_size=1, max_size=4, unique=True))
    heads = draw(st.booleans())
    ours += ["h"] if heads else []
    ours = draw(st.permutations(ours))
    parts = draw(st.integers(1, 3))
    names = draw(st.permutations([*ours, "p"] if parts > 1 else ours))
    cuts = draw(st.lists(st.booleans(), min_size=len(names) - 1, max_size=len(names) - 1))
    groups = [[names[0]]]
    for name, cut in zip(names[1:], cuts, strict=True):
        groups.append([name]) if cut else groups[-1].append(name)
    copies = draw(st.integers(1, 3)) if heads else 1
    merged = [" ".join(group).replace("h", "h copy" if copies > 1 else "h") for group in groups]
    theirs = [f"({axis})" if " " in axis else axis for axis in merged]
    for _ in range(draw(st.integers(0, 2))):
        theirs.insert(draw(st.integers(0, len(theirs))), "1")
    layout = f"{' '.join(theirs)} -> {'p ' if parts > 1 else ''}{' '.join(ours)}"
    shape = tuple(draw(st.integers(1, 4)) for _ in ours)
    sizes = {"copy": copies} if copies > 1 else {}
    return Placement("theirs", Entry("theirs", tuple("xyz"[:parts]), layout, sizes), (), shape)


@given(piece=layouts(), seed=st.integers(0, 99))
@settings(deadline=None)
def test_there_and_back(piece, seed):
    rng = np.random.default_rng(seed)
    ours = [bits(piece.shape, rng) for _ in piece.entry.ours]
    theirs = piece.to_theirs(ours)
    assert theirs.shape == piece.their_shape
    # A NaN is no copy of itself, so that heads are repeated as numbers.
    if "copy" in piece.entry.sizes:
        ours = [rng.normal(size=piece.shape).astype(np.float32) for _ in piece.entry.ours]
        theirs = piece.to_theirs(ours)
    back = piece.to_ours(theirs)
    assert len(back) == len(ours)
    assert all(same_bits(a, b) for a, b in zip(ours, back, strict=True))
    assert same_bits(piece.to_theirs(back), theirs)


def test_a_layout_that_can_be_checked_by_eye():
    piece = Placement("x", Entry("x", ("q", "k"), "(h p k) d -> p d h k"), (), (1, 2, 2))
    theirs = np.array([[0], [1], [2], [3], [4], [5], [6], [7]])
    query, key = piece.to_ours(theirs)
    assert query.tolist() == [[[0, 1], [4, 5]]]
    assert key.tolist() == [[[2, 3], [6, 7]]]


def test_axes_of_ours_may_be_merged_too():
    entry = Entry("x", ("q",), "(h half two) d -> d h (two half)", {"two": 2, "half": 2})
    piece = Placement("x", entry, (), (1, 2, 4))
    theirs = np.arange(8)[:, None]
    assert piece.to_ours(theirs)[0].tolist() == [[[0, 2, 1, 3], [4, 6, 5, 7]]]
    assert piece.to_theirs(piece.to_ours(theirs)).tolist() == theirs.tolist()
    assert piece.their_shape == (8, 1)


def test_repeated_heads_that_differ_are_refused():
    piece = Placement("layer.k_proj", Entry("x", ("k",), "(h copy k) d -> d h k", {"copy": 2}), (), (1, 1, 2))
    assert piece.to_ours(np.array([[1], [2], [1], [2]]))[0].tolist() == [[[1, 2]]]
    with pytest.raises(WeightsError, match=r"layer\.k_proj: heads that must share keys and values differ"):
        piece.to_ours(np.array([[1], [2], [1], [3]]))


@st.composite
def geometries(draw, family: str) -> ModelConfig:
    small = st.integers(1, 3)
    every, groups, heads = draw(small), draw(st.integers(1, 2)), draw(small)
    kv_heads = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    shared = {
        "vocab_size": draw(st.integers(1, 9)), "layers": every * groups, "heads": heads,
        "width": heads * 2 * draw(small), "mlp_width": draw(st.integers(1, 9)), "tie_embeddings": draw(st.booleans()),
    }  # fmt: skip
    decoders = {
        "gpt_neox": {},
        "mpt": {"bias": False, "position": "alibi"},
        "mosaic_gpt": {"bias": False, "position": "alibi", "qk_norm": True},
        "llama": {"bias": False, "norm": "rms_norm", "mlp": "swiglu", "kv_heads": kv_heads},
    }
    decoders["idefics"] = decoders["llama"] | {"new_tokens": draw(st.integers(0, 2))}
    decoder = DecoderConfig(**shared, **decoders[family])
    gated = {"every": every, "heads": draw(small), "head_dim": draw(small), "mlp_ratio": draw(small)}
    resampler = {"layers": draw(small), "heads": draw(small), "head_dim": draw(small), "latents": draw(small)}
    if family == "idefics":
        gated |= {"place": "before_first", "mlp": "swiglu", "norm": "rms_norm", "qk_norm": draw(st.booleans())}
        gated |= {"gate": draw(st.sampled_from(["scalar", "channel"]))}
        resampler |= {"mlp": "relu", "qk_norm": draw(st.booleans())}
    vision_heads = draw(small)
    return ModelConfig(
        vision=VisionConfig(
            image_size=6, patch_size=draw(st.sampled_from([2, 3])), width=vision_heads * draw(small),
            layers=draw(small), heads=vision_heads, mlp_width=draw(small),
        ),
        resampler=ResamplerConfig(**resampler),
        gated=GatedCrossAttentionConfig(**gated),
        decoder=decoder,
    )  # fmt: skip


LANGUAGE = {"gpt_neox": gpt_neox, "mpt": mpt, "mosaic_gpt": mosaic_gpt, "llama": llama}
VISION = {"open_clip": open_clip("vision_encoder"), "clip": tower("vision_encoder.clip.vision_model.", VisionConfig())}
CASES = [*[(family, vision) for family in LANGUAGE for vision in VISION], ("idefics", "clip")]


@pytest.mark.parametrize(("family", "vision"), CASES)
@given(data=st.data())
@settings(deadline=None, max_examples=6)
def test_tables_cover_every_parameter_once(family, vision, data):
    config = data.draw(geometries(family))
    if family == "idefics":
        table = idefics.table(config)
    else:
        table = open_flamingo.table(config, LANGUAGE[family], VISION[vision])
        assert open_flamingo.tabulate_by_config(config) is LANGUAGE[family]
    shapes = model_shapes(config)
    planned = list(placements(table, shapes))
    assert max(Counter(piece.key for piece in planned).values()) == 1
    covered = Counter((ours, piece.index) for piece in planned for ours in piece.entry.ours)
    assert max(covered.values()) == 1
    assert not unfilled(shapes, covered)

    rng = np.random.default_rng(0)
    ours = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    written = {piece.key: piece.to_theirs([ours[name][piece.index] for name in piece.entry.ours]) for piece in planned}
    back = {name: np.full_like(array, np.nan) for name, array in ours.items()}
    for piece in planned:
        for name, array in zip(piece.entry.ours, piece.to_ours(written[piece.key]), strict=True):
            back[name][piece.index] = array
    assert all(same_bits(ours[name], back[name]) for name in ours)

    for piece in planned:
        if piece.entry.sizes.get("copy", 1) == 1:
            theirs = bits(piece.their_shape, rng)
            assert same_bits(piece.to_theirs(piece.to_ours(theirs)), theirs), piece.key


def test_a_table_for_another_geometry_is_refused():
    config = ModelConfig(decoder=DecoderConfig(vocab_size=3, width=4, layers=1, heads=2, mlp_width=3))
    table = llama(config.decoder)
    with pytest.raises(
        WeightsError, match="the model has no parameter decoder/layers/mlp/gate/kernel in this geometry"
    ):
        list(placements(table, model_shapes(config)))
