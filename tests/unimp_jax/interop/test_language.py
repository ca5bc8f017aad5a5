"""Language models and vision towers of transformers: the same answers from the weights that it saves."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.interop.support import all_logits, batch_of, imported, shake, write_config
from unimp_jax.batch import Batch
from unimp_jax.interop import language
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.loading import load_values
from unimp_jax.interop.start import read_start, start_values
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    RotaryScaling,
    UniMP,
    VisionConfig,
)
from unimp_jax.model.layers import DTypes, Loop
from unimp_jax.model.vision import VisionTower, normalise

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
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
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
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


def qwen2(**changes):
    described = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 80}
    return Qwen2ForCausalLM(Qwen2Config(**(SHARED | described | {"num_key_value_heads": 6} | changes)))


def qwen3(**changes):
    described = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56}
    defaults = {"head_dim": 16, "num_key_value_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(**(SHARED | described | defaults | changes)))


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
"""Of the four frequencies of a head of width 8, one stays, one is divided and one lies between."""

DECODERS = {
    "llama": llama,
    "llama, shared heads, tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama, one key head, other base": lambda: llama(num_key_value_heads=1, rope_theta=500.0, rms_norm_eps=1e-3),
    "llama, scaled as llama 3": lambda: llama(rope_parameters=LLAMA3, head_dim=12),
    "llama, scaled linearly": lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 10.0, "factor": 3.0}),
    "qwen2": qwen2,
    "qwen2, shared heads, tied": lambda: qwen2(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e6),
    "qwen3": qwen3,
    "qwen3, narrow heads, tied": lambda: qwen3(head_dim=6, tie_word_embeddings=True, rope_theta=1e6),
    "qwen3, one key head": lambda: qwen3(num_key_value_heads=1, head_dim=10, rms_norm_eps=1e-3),
}
"""Those that are written as well as read."""

MODELS = {
    "gpt-neox, one after the other": lambda: gpt_neox(use_parallel_residual=False, rotary_pct=1.0),
    "gpt-neox, parallel, half turned": lambda: gpt_neox(use_parallel_residual=True, rotary_pct=0.5),
    "gpt-neox, a third turned, other base": lambda: gpt_neox(rotary_pct=0.35, rotary_emb_base=500),
    "mpt": mpt,
    "mpt, six heads": lambda: mpt(n_heads=6, layer_norm_epsilon=1e-3),
    **DECODERS,
}


def packed() -> tuple[list[np.ndarray], Batch]:
    """(prompts, two rows that hold them: three in the first, one and padding in the second)."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCABULARY, length, dtype=np.int32) for length in (5, 9, 3, 12)]
    rows = [prompts[:3], prompts[3:]]
    tokens, segments, positions = np.zeros((3, 2, 17), np.int32)
    for row, held in enumerate(rows):
        length = sum(map(len, held))
        tokens[row, :length] = np.concatenate(held)
        segments[row, :length] = np.repeat(np.arange(1, len(held) + 1), [*map(len, held)])
        positions[row, :length] = np.concatenate([np.arange(len(prompt)) for prompt in held])
    size = OTHERS.vision.image_size
    images, none = np.zeros((2, 1, size, size, 3), np.float32), np.zeros((2, 1), np.int32)
    return prompts, batch_of(tokens, segments, positions, np.full_like(tokens, -1), images, none)


def check_logits(theirs, ours: UniMP) -> None:
    """Ours of packed rows, theirs of each prompt by itself."""
    prompts, batch = packed()
    found = np.asarray(all_logits(ours, batch))
    found = [*np.split(found[0], np.cumsum([*map(len, prompts[:3])]))[:3], found[1, : len(prompts[3])]]
    for prompt, own in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor(prompt[None], dtype=torch.long), use_cache=False).logits.numpy()[0]
        assert expected.std() > 0.05, "the tolerance is far below what there is to see"
        np.testing.assert_allclose(own, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_logits_of_text_alone(make, tmp_path):
    check_language(make, tmp_path)


def test_logits_from_shards(tmp_path):
    theirs = check_language(llama, tmp_path, max_shard_size="20KB")
    assert len(list(theirs.glob("*.safetensors"))) > 1


def check_language(make, tmp_path, **saving) -> Path:
    theirs = make().eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs", **saving)
    ours = imported(ImportConfig(language=str(tmp_path / "theirs")), tmp_path / "start", OTHERS)
    check_logits(theirs, ours)
    if make in DECODERS.values():
        check_written(theirs, ours, tmp_path / "ours")
    return tmp_path / "theirs"


def check_written(theirs, ours: UniMP, folder: Path) -> None:
    """What is written has their numbers, is of their class and of their geometry."""
    described = language.described_as(ours.config)
    write_config(folder, described)
    state = {name: x for name, x in named(nnx.state(ours)).items() if name.split("/")[0] in ("decoder", "embeddings")}
    write_weights(folder, state, language.llama(ours.config.decoder), unread={})
    read, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(read) is type(theirs)
    assert not any(told.values())
    own = theirs.config.to_dict()
    assert {name: own[name] for name in described} == described
    expected = theirs.state_dict()
    assert read.state_dict().keys() == expected.keys()
    assert all(torch.equal(array, expected[key]) for key, array in read.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"bias": True}, "LLaMA does not support this geometry: decoder.bias is True and must be False"),
        ({"qk_norm": True}, "Qwen3 does not support this geometry: decoder.qk_norm_per_head is False and must be True"),
        (
            {"qkv_bias": True, "head_width": 4},
            "Qwen2 does not support this geometry: decoder.head_width is 4 and must be None",
        ),
        (
            {"position": "alibi", "mlp": "gelu"},
            "decoder.position is 'alibi' and must be 'rotary'; decoder.mlp is 'gelu'",
        ),
    ],
)
def test_a_decoder_of_none_of_these_families_is_not_described(changes, telling):
    decoder = dataclasses.replace(OTHERS.decoder, norm="rms_norm", mlp="swiglu", bias=False)
    with pytest.raises(WeightsError, match=telling):
        language.described_as(dataclasses.replace(OTHERS, decoder=dataclasses.replace(decoder, **changes)))


def test_impossible_heads_and_scalings_are_refused():
    for changes, telling in (
        ({"head_width": 0}, "head_width 0"),
        ({"qk_norm_per_head": True}, "qk_norm_per_head needs qk_norm"),
    ):
        with pytest.raises(ValueError, match=telling):
            DecoderConfig(**changes)
    with pytest.raises(ValueError, match="factor above 0"):
        RotaryScaling("linear", factor=0.0)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_use_head": False},
        {"image_size": 30, "num_attention_heads": 2, "layer_norm_eps": 1e-3},
        {"image_size": 24, "patch_size": 12, "hidden_act": "gelu"},
    ],
    ids=["no head", "a border that is not read", "exact GELU"],
)
def test_siglip_sees_what_theirs_sees(changes, tmp_path):
    theirs = SiglipVisionModel(SiglipVisionConfig(**(TOWER | changes))).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    said = check_tower(tmp_path, theirs, class_token=False)
    assert ("head.attention.in_proj_weight" in said) == changes.get("vision_use_head", True), "unused, and reported"


def test_a_whole_siglip_gives_its_tower(tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = SiglipModel(SiglipConfig(text_config=text | {"vocab_size": 50}, vision_config=TOWER)).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert "text_model.encoder.layers" in check_tower(tmp_path, theirs.vision_model, class_token=False)


def test_siglip_colours():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    theirs = SiglipImageProcessor(do_resize=False)([*images], return_tensors="np", input_data_format="channels_last")
    ours = normalise(jnp.asarray(images), *VisionConfig(colours="siglip").mean_and_deviation)
    np.testing.assert_allclose(ours, np.moveaxis(theirs["pixel_values"], 1, -1), atol=1e-6)


def check_tower(folder, theirs, class_token: bool) -> str:
    said = import_weights(ImportConfig(vision=str(folder / "theirs")), folder / "start")
    tower = dataclasses.replace(read_start(folder / "start").geometry.vision, class_token_out=class_token)
    images = np.random.default_rng(0).normal(size=(3, tower.image_size, tower.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        seen = theirs(torch.tensor(np.moveaxis(images, -1, 1)), output_hidden_states=True)
    expected = seen.last_hidden_state.numpy()
    found = vision_of(folder / "start", dataclasses.replace(OTHERS, vision=tower), images)
    assert expected.std() > 0.05, "the tolerance is far below what there is to see"
    left_out = int(tower.class_token and not class_token)
    np.testing.assert_allclose(found, expected[:, left_out:], atol=1e-4, rtol=0)
    return said


def vision_of(start, config: ModelConfig, images: np.ndarray) -> np.ndarray:
    graph, state = nnx.split(nnx.jit(lambda: VisionTower(config.vision, DTypes(), Loop(), nnx.Rngs(0)))())
    (whole,) = load_values((nnx.State({"vision": state}),), start_values(start, config))
    return np.asarray(jax.jit(lambda state, images: nnx.merge(graph, state)(images))(whole["vision"], images))


def test_language_and_vision_together(tmp_path):
    language, vision = llama(num_key_value_heads=3), CLIPVisionModel(CLIPVisionConfig(**TOWER))
    language.save_pretrained(tmp_path / "language")
    vision.save_pretrained(tmp_path / "vision")
    config = ImportConfig(language=str(tmp_path / "language"), vision=str(tmp_path / "vision"))
    said = import_weights(config, tmp_path / "start")
    assert "not imported, trained from random weights: gated, resampler" in said
    assert "unused: post_layernorm.bias, post_layernorm.weight" in said
    assert read_start(tmp_path / "start").geometry.parts == ("vision", "decoder", "embeddings")
    geometry = read_start(tmp_path / "start").geometry.of_model(OTHERS)
    assert nnx.eval_shape(lambda: UniMP(geometry, rngs=nnx.Rngs(0))).config.decoder.kv_heads == 3
