"""Language models and vision towers of transformers: the same answers from the weights that it saves."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.interop.support import all_logits, imported, shake, text_batch
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.placing import place
from unimp_jax.interop.start import read_start, start_values
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    UniMP,
    VisionConfig,
)
from unimp_jax.model.layers import DTypes, Loop
from unimp_jax.model.vision import VisionTower

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

VOCABULARY = 67
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
OTHERS = ModelConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_width=24),
    resampler=ResamplerConfig(layers=1, heads=2, head_dim=8, latents=3),
    gated=GatedCrossAttentionConfig(every=3, heads=2, head_dim=8),
    decoder=DecoderConfig(vocab_size=9, width=16, layers=3, heads=2, mlp_width=16),
    compute_dtype="float32",
)


def gpt_neox(**changes):
    described = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SHARED, **described, **changes))


def mpt(**changes):
    described = {"d_model": 48, "n_layers": 3, "max_seq_len": 64}
    return MptForCausalLM(MptConfig(**SHARED, **(described | {"n_heads": 4} | changes)))


def llama(**changes):
    described = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 80}
    return LlamaForCausalLM(LlamaConfig(**SHARED, **described, **changes))


MODELS = {
    "gpt-neox, one after the other": lambda: gpt_neox(use_parallel_residual=False, rotary_pct=1.0),
    "gpt-neox, parallel, half turned": lambda: gpt_neox(use_parallel_residual=True, rotary_pct=0.5),
    "gpt-neox, a third turned, other base": lambda: gpt_neox(rotary_pct=0.35, rotary_emb_base=500),
    "mpt": mpt,
    "mpt, six heads": lambda: mpt(n_heads=6, layer_norm_epsilon=1e-3),
    "llama": llama,
    "llama, shared heads, tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama, one key head, other base": lambda: llama(num_key_value_heads=1, rope_theta=500.0, rms_norm_eps=1e-3),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"], ids=["one file", "shards"])
def test_logits_of_text_alone(make, shard_size, tmp_path):
    theirs = make().eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1) == (shard_size != "5GB")
    ours = imported(ImportConfig(language=str(tmp_path / "theirs")), tmp_path / "start", OTHERS)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 13), dtype=np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long), use_cache=False).logits.numpy()
    assert expected.std() > 0.05, "the tolerance is far below what there is to see"
    found = np.asarray(all_logits(ours, text_batch(tokens, OTHERS.vision.image_size)))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


TOWER = {
    "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 24, "patch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("class_token", [False, True], ids=["patches alone", "with class token"])
def test_the_tower_sees_what_theirs_sees(activation, class_token, tmp_path):
    theirs = CLIPVisionModel(CLIPVisionConfig(**TOWER, hidden_act=activation, layer_norm_eps=1e-4)).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    check_tower(tmp_path, theirs, class_token)


def test_a_whole_clip_gives_its_tower(tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = CLIPModel(CLIPConfig(text_config=text | {"vocab_size": 50}, vision_config=TOWER)).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    said = check_tower(tmp_path, theirs.vision_model, class_token=False)
    assert "text_model.encoder.layers" in said, "what is not read is reported"


def check_tower(folder, theirs, class_token: bool) -> str:
    said = import_weights(ImportConfig(vision=str(folder / "theirs")), folder / "start")
    tower = dataclasses.replace(read_start(folder / "start").geometry.vision, class_token_out=class_token)
    images = np.random.default_rng(0).normal(size=(3, 24, 24, 3)).astype(np.float32)
    with torch.no_grad():
        seen = theirs(torch.tensor(np.moveaxis(images, -1, 1)), output_hidden_states=True)
    expected = seen.last_hidden_state.numpy()
    found = vision_of(folder / "start", dataclasses.replace(OTHERS, vision=tower), images)
    np.testing.assert_allclose(found, expected if class_token else expected[:, 1:], atol=1e-4, rtol=0)
    return said


def vision_of(start, config: ModelConfig, images: np.ndarray) -> np.ndarray:
    graph, state = nnx.split(VisionTower(config.vision, DTypes(), Loop(), nnx.Rngs(0)))
    (whole,) = place((nnx.State({"vision": state}),), start_values(start, config))
    return np.asarray(nnx.merge(graph, whole["vision"])(images))


def test_language_and_vision_together(tmp_path):
    language, vision = llama(num_key_value_heads=3), CLIPVisionModel(CLIPVisionConfig(**TOWER))
    language.save_pretrained(tmp_path / "language")
    vision.save_pretrained(tmp_path / "vision")
    config = ImportConfig(language=str(tmp_path / "language"), vision=str(tmp_path / "vision"))
    said = import_weights(config, tmp_path / "start")
    assert "left to training from random weights: gated, resampler" in said
    assert "unused: post_layernorm.bias, post_layernorm.weight" in said
    assert read_start(tmp_path / "start").geometry.parts == ("vision", "decoder", "embeddings")
    geometry = read_start(tmp_path / "start").geometry.of_model(OTHERS)
    assert nnx.eval_shape(lambda: UniMP(geometry, rngs=nnx.Rngs(0))).config.decoder.kv_heads == 3
