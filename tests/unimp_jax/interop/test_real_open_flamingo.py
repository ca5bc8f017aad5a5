"""What is exported loads into open-flamingo's own class and gives the same logits.

The class, its resampler, its gated blocks and its wrapper of the language model are the package's; the language models
are transformers'; the tower is a stand-in with open_clip's names and arithmetic, since the package needs open_clip for
nothing but building one.
"""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.interop.support import all_logits, batch_of, imported, randomised, weight_files
from tests.unimp_jax.models import drawn
from unimp_jax.interop import open_flamingo
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import GEOMETRY, ImportConfig
from unimp_jax.interop.shards import SHARD_BYTES, write_json
from unimp_jax.interop.vision import last_norm
from unimp_jax.interop.weights import canonical
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    UniMP,
    VisionConfig,
)

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MptConfig, MptForCausalLM  # noqa: E402

from tests.unimp_jax.interop.reference import MEDIA, Tower, flamingo  # noqa: E402

VOCABULARY = 40
VISION = VisionConfig(image_size=16, patch_size=8, width=32, layers=2, heads=4, mlp_width=48)
SIZES = {"vocab_size": VOCABULARY, "width": 48, "layers": 4, "heads": 4}


def mpt():
    described = MptConfig(vocab_size=VOCABULARY, d_model=48, n_layers=4, n_heads=4, max_seq_len=64)
    decoder = DecoderConfig(**SIZES, mlp_width=192, bias=False, position="alibi", tie_embeddings=True)
    return MptForCausalLM(described), decoder, "transformer.blocks"


def gpt_neox():
    described = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=80,
        rotary_pct=0.5, use_parallel_residual=False,
    )  # fmt: skip
    return GPTNeoXForCausalLM(described), DecoderConfig(**SIZES, mlp_width=80, rotary_fraction=0.5), "gpt_neox.layers"


@pytest.mark.parametrize("make", [mpt, gpt_neox])
@pytest.mark.parametrize("every", [1, 2])
def test_export_loads_and_gives_the_same_logits(make, every, tmp_path):
    language, decoder, layers = make()
    config = ModelConfig(
        vision=VISION, resampler=ResamplerConfig(), gated=GatedCrossAttentionConfig(every=every), decoder=decoder,
        compute_dtype="float32",
    )  # fmt: skip
    open_flamingo.refuse(config)
    ours = randomised(drawn(config))
    table = open_flamingo.table(config, open_flamingo.tabulate_by_config(config), open_flamingo.vision_table())
    unread = last_norm(open_flamingo.LAST_NORM, VISION)
    write_weights(tmp_path, named(nnx.state(ours)), table, unread=unread)

    theirs = flamingo(language, Tower(VISION), VISION.width, every, layers).eval()
    weights = load_file(tmp_path / "model.safetensors")
    head = "lang_encoder.embed_out.weight"
    if head in weights and not hasattr(language, "embed_out"):  # transformers 5 calls it so on disk alone
        weights["lang_encoder.lm_head.weight"] = weights.pop(head)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    # What is left is there under its other name, tied, or CLIP's projection, which the package does not use.
    other = {canonical(key, open_flamingo.ALIASES) for key in missing} - set(weights)
    assert other <= {"vision_encoder.proj", "lang_encoder.lm_head.weight"}
    assert ("lang_encoder.lm_head.weight" in other) == decoder.tie_embeddings

    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCABULARY, (2, 14), dtype=np.int32)
    tokens[0, [1, 5, 9]] = tokens[1, [0, 4, 11]] = MEDIA
    images = rng.normal(size=(2, 3, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(images)[:, :, None],
            torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.ones(tokens.shape, dtype=torch.long),
        ).logits.numpy()
    ones, there = np.ones_like(tokens), np.ones((2, 3), np.int32)
    index = np.cumsum(tokens == MEDIA, axis=1, dtype=np.int32) - 1
    batch = batch_of(tokens, ones, ones * np.arange(14), index, np.moveaxis(images, 2, -1), there)
    assert expected.std() > 0.05, "the tolerance is far below what there is to see"
    found = np.asarray(all_logits(ours, batch))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    blind = np.asarray(all_logits(ours, batch.replace(images=np.zeros_like(batch.images))))
    assert np.abs(blind - found).max() > 1e-2, "images matter"


@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 300_000], ids=["one file", "shards"])
@pytest.mark.parametrize("make", [mpt, gpt_neox])
def test_export_import_export_is_the_same_bytes(make, shard_bytes, tmp_path):
    _, decoder, _ = make()
    config = ModelConfig(
        vision=VISION, resampler=ResamplerConfig(layers=2, latents=3), gated=GatedCrossAttentionConfig(every=2),
        decoder=decoder, compute_dtype="float32",
    )  # fmt: skip

    def export(folder, model: UniMP):
        folder.mkdir()
        table = open_flamingo.table(config, open_flamingo.tabulate_by_config(config), open_flamingo.vision_table())
        unread = last_norm(open_flamingo.LAST_NORM, VISION)
        write_weights(folder, named(nnx.state(model)), table, unread=unread, shard_bytes=shard_bytes)
        write_json(folder / GEOMETRY, dataclasses.asdict(config))
        return folder

    first = export(tmp_path / "first", randomised(drawn(config, 1)))
    again = imported(ImportConfig(open_flamingo=str(first)), tmp_path / "start")
    files = weight_files(export(tmp_path / "second", again))
    assert files == weight_files(first)
    assert (len(files) > 3) == (shard_bytes < SHARD_BYTES)
