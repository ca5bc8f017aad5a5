"""IdeficsForVisionText2Text of transformers: the same logits from the same weights, both ways, and byte for byte."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.interop.support import all_logits, batch_of, imported, randomised, shake, weight_files
from tests.unimp_jax.models import drawn
from unimp_jax.interop import idefics
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import ImportConfig
from unimp_jax.interop.loading import load_values
from unimp_jax.interop.shards import SHARD_BYTES, write_json
from unimp_jax.interop.start import read_start, start_values
from unimp_jax.interop.vision import last_norm
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    UniMP,
    VisionConfig,
)
from unimp_jax.sharding import MeshConfig, init_model, make_mesh

torch = pytest.importorskip("torch")
from transformers import IdeficsConfig, IdeficsForVisionText2Text  # noqa: E402

VOCABULARY = 61


def geometry(
    *, every=1, new_tokens=0, tied=False, qk_norm=False, perceiver_qk_norm=False, gate="scalar", kv_heads=None,
    activation="gelu", rotary_base=10000.0,
) -> ModelConfig:  # fmt: skip
    decoder = DecoderConfig(
        vocab_size=VOCABULARY, new_tokens=new_tokens, width=48, layers=4, heads=6, kv_heads=kv_heads, mlp_width=80,
        norm="rms_norm", norm_eps=1e-5, bias=False, mlp="swiglu", rotary_base=rotary_base, tie_embeddings=tied,
    )  # fmt: skip
    return ModelConfig(
        vision=VisionConfig(
            image_size=16, patch_size=8, width=32, layers=2, heads=4, mlp_width=72, activation=activation,
            class_token_out=True,
        ),
        resampler=ResamplerConfig(layers=2, heads=4, head_dim=10, latents=5, mlp="relu", qk_norm=perceiver_qk_norm),
        gated=GatedCrossAttentionConfig(
            every=every, place="before_first", heads=6, head_dim=8, mlp_width=80, mlp="swiglu", norm="rms_norm",
            norm_eps=1e-5, qk_norm=qk_norm, gate=gate,
        ),
        decoder=decoder,
        compute_dtype="float32",
    )  # fmt: skip


GEOMETRIES = {
    "plain": geometry(),
    "every 2, new tokens, norms, vector": geometry(
        every=2, new_tokens=3, qk_norm=True, perceiver_qk_norm=True, gate="channel"
    ),
    "every 4, tied, new tokens, quick_gelu": geometry(every=4, new_tokens=2, tied=True, activation="quick_gelu"),
    "tied, perceiver norms, rope": geometry(every=2, tied=True, perceiver_qk_norm=True, rotary_base=500.0),
    "cross norms, vector": geometry(every=4, qk_norm=True, gate="channel"),
}
each_geometry = pytest.mark.parametrize("config", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def random_inputs(config: ModelConfig, rows=2, length=11, images=3, seed=0):
    """Tokens, images, and of each token the image that most recently precedes it, -1 for the first few."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.decoder.vocab_size + config.decoder.new_tokens, (rows, length), dtype=np.int32)
    tokens[:, -1] = config.decoder.vocab_size + config.decoder.new_tokens - 1
    pixels = rng.normal(size=(rows, images, 3, config.vision.image_size, config.vision.image_size))
    index = np.sort(rng.integers(0, images, (rows, length), dtype=np.int32), axis=1)
    index[:, :2] = -1
    return tokens, pixels.astype(np.float32), index


def our_logits(model: UniMP, tokens, images, index) -> np.ndarray:
    ones = np.ones_like(tokens)
    there = np.ones(images.shape[:2], np.int32)
    batch = batch_of(tokens, ones, ones * np.arange(tokens.shape[1]), index, np.moveaxis(images, 2, -1), there)
    return np.asarray(all_logits(model, batch))


def their_logits(model, tokens, images, index) -> np.ndarray:
    mask = (index[:, :, None] == np.arange(images.shape[1])).astype(np.int64)
    with torch.no_grad():
        out = model.eval()(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            pixel_values=torch.tensor(images),
            image_attention_mask=torch.tensor(mask),
            use_cache=False,
        )
    return out.logits.numpy()


def export(folder, model: UniMP, new_tokens: int | None = None, shard_bytes=SHARD_BYTES):
    """`new_tokens`: how many of the last base rows were a table of their own before an import."""
    config, parameters = model.config, named(nnx.state(model))
    if new_tokens:
        rows = config.decoder.vocab_size - new_tokens
        config = dataclasses.replace(
            config, decoder=dataclasses.replace(config.decoder, vocab_size=rows, new_tokens=new_tokens)
        )
        for base, new in (("embeddings/base", "embeddings/new"), ("embeddings/base_head", "embeddings/new_head")):
            if base in parameters:
                parameters |= {base: parameters[base][:rows], new: parameters[base][rows:]}
    folder.mkdir()
    write_weights(
        folder,
        parameters,
        idefics.table(config),
        unread=last_norm(idefics.LAST_NORM, config.vision),
        shard_bytes=shard_bytes,
    )
    write_json(folder / "config.json", idefics.described_as(config))
    return folder


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.05, "the tolerance is far below what there is to see"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@each_geometry
def test_their_weights_give_their_logits(config, tmp_path):
    theirs = IdeficsForVisionText2Text(IdeficsConfig(**idefics.described_as(config)))
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = imported(ImportConfig(vision_language=str(tmp_path / "theirs")), tmp_path / "start")
    assert read_start(tmp_path / "start").geometry.of_model(config) == config
    inputs = random_inputs(config)
    check(our_logits(ours, *inputs), their_logits(theirs, *inputs))


@pytest.mark.parametrize(
    "config",
    [*GEOMETRIES.values(), geometry(kv_heads=2, new_tokens=1), geometry(every=2, kv_heads=1, tied=True)],
    ids=[*GEOMETRIES.keys(), "two key heads", "one key head, tied"],
)
def test_our_export_gives_our_logits(config, tmp_path):
    ours = randomised(drawn(config, 1))
    folder = export(tmp_path / "exported", ours)
    theirs, info = IdeficsForVisionText2Text.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens, images, index = random_inputs(config)
    found = our_logits(ours, tokens, images, index)
    check(their_logits(theirs, tokens, images, index), found)
    assert np.abs(our_logits(ours, tokens, 0 * images, index) - found).max() > 1e-2, "images matter"


@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 30_000], ids=["one file", "shards"])
@pytest.mark.parametrize(
    "config",
    [GEOMETRIES["every 2, new tokens, norms, vector"], geometry(kv_heads=3, tied=True)],
    ids=["norms, vector", "shared heads, tied"],
)
def test_export_import_export_is_the_same_bytes(config, shard_bytes, tmp_path):
    first = export(tmp_path / "first", randomised(drawn(config, 2)), shard_bytes=shard_bytes)
    again = imported(ImportConfig(vision_language=str(first)), tmp_path / "start")
    second = export(tmp_path / "second", again, config.decoder.new_tokens, shard_bytes)
    files = weight_files(first)
    assert files == weight_files(second)
    if shard_bytes < SHARD_BYTES:
        assert len(json.loads(files["model.safetensors.index.json"])["weight_map"]) > len(files) > 3
    else:
        assert set(files) == {"model.safetensors"}


def test_what_they_save_comes_back_as_they_saved_it(tmp_path):
    config = GEOMETRIES["every 2, new tokens, norms, vector"]
    theirs = IdeficsForVisionText2Text(IdeficsConfig(**idefics.described_as(config)))
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = imported(ImportConfig(vision_language=str(tmp_path / "theirs")), tmp_path / "start")
    back = IdeficsForVisionText2Text.from_pretrained(export(tmp_path / "ours", ours, 3)).state_dict()
    for key, tensor in theirs.state_dict().items():
        if not key.startswith(idefics.LAST_NORM):
            assert torch.equal(back[key], tensor), key


def test_bfloat16_weights_keep_their_bits(tmp_path):
    config = GEOMETRIES["plain"]
    theirs = IdeficsForVisionText2Text(IdeficsConfig(**idefics.described_as(config))).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = imported(ImportConfig(vision_language=str(tmp_path / "theirs")), tmp_path / "start")
    expected = theirs.model.norm.weight.detach().float().numpy()
    assert np.array_equal(np.asarray(ours.decoder.norm.scale[...]), expected)
    kernel = theirs.lm_head.weight.detach().float().numpy()
    assert np.array_equal(np.asarray(ours.embeddings.base_head[...]), kernel)


@pytest.mark.slow
def test_parameters_land_in_their_places_whatever_the_mesh(tmp_path):
    """The eight host devices of the tests: sharded parameters are filled as whole ones are."""
    config = geometry(every=2, new_tokens=3, kv_heads=2)
    ours = randomised(drawn(config, 3))
    start = tmp_path / "start"
    whole = imported(ImportConfig(vision_language=str(export(tmp_path / "exported", ours))), start)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        state = nnx.state(init_model(whole.config, mesh, 0))
        before = jax.tree.map(lambda x: x.sharding, state)
        (state,) = load_values((state,), start_values(start, whole.config))
    assert before == jax.tree.map(lambda x: x.sharding, state)
    expected = named(nnx.state(whole))
    for name, array in named(state).items():
        assert np.array_equal(np.asarray(array), np.asarray(expected[name])), name
