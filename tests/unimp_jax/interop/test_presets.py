"""Presets have as many parameters as the classes they are named after, built without memory for them."""

import dataclasses
import math

import pytest

from unimp_jax.interop.idefics import model_config
from unimp_jax.interop.layout import model_shapes
from unimp_jax.interop.llava import model_config as llava_config
from unimp_jax.interop.smolvlm import model_config as smolvlm_config
from unimp_jax.model.presets import PRESETS

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    CLIPVisionModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MptConfig,
    MptForCausalLM,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)


def ours(preset: str) -> int:
    return sum(math.prod(shape) for shape in model_shapes(PRESETS[preset]).values())


def count(module) -> int:
    """Tied and twice registered parameters once."""
    return sum(parameter.numel() for parameter in module.parameters())


IDEFICS_9B = {
    "vocab_size": 32000,
    "additional_vocab_size": 2,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "cross_layer_interval": 4,
    "qk_layer_norms": True,
    "alpha_type": "vector",
    "use_resampler": True,
    "perceiver_config": {
        "use_resampler": True,
        "resampler_n_latents": 64,
        "resampler_depth": 6,
        "resampler_n_heads": 16,
        "resampler_head_dim": 96,
        "qk_layer_norms_perceiver": True,
    },
    "vision_config": {
        "embed_dim": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
        "patch_size": 14,
        "image_size": 224,
        "hidden_act": "gelu",
    },
}
"""As HuggingFaceM4/idefics-9b is published."""


def test_idefics_9b():
    """Their tower's last norm, which no answer depends on, is not ours."""
    with torch.device("meta"):
        theirs = IdeficsForVisionText2Text(IdeficsConfig(**IDEFICS_9B))
    assert ours("idefics_9b") == count(theirs) - count(theirs.model.vision_model.post_layernorm)


def test_idefics_9b_reads_as_the_preset():
    read, preset = model_config({"model_type": "idefics", **IDEFICS_9B}), PRESETS["idefics_9b"]
    assert dataclasses.replace(read, remat=preset.remat) == preset


BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 256, "patch_size": 32,
}  # fmt: skip
SO400M = {
    "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304,
    "image_size": 224, "patch_size": 14,
}  # fmt: skip
QWEN3 = {
    "qwen3_0_6b": (BASE, 1024, 28, 16, 3072, True, 0.596),
    "qwen3_1_7b": (BASE, 2048, 28, 16, 6144, True, 1.721),
    "qwen3_4b": (SO400M, 2560, 36, 32, 9728, True, 4.022),
    "qwen3_8b": (SO400M, 4096, 36, 32, 12288, False, 8.191),
}
"""Tower, width, layers, heads, width of MLPs and whether the head is the embedding, as Qwen publishes them; and the
language model's parameters, in billions."""


@pytest.mark.parametrize("preset", QWEN3)
def test_qwen3(preset):
    """Transformers' LLaVA of both but for the tower's last norm, which LLaVA does not read."""
    tower, width, layers, heads, mlp_width, tied, billions = QWEN3[preset]
    text = Qwen3Config(
        vocab_size=151936, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8, head_dim=128, intermediate_size=mlp_width, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    vision = SiglipVisionConfig(**tower, vision_use_head=False)
    config = LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-1, vision_feature_select_strategy="full"
    )
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(config)
    assert ours(preset) == count(theirs) - count(theirs.model.vision_tower.post_layernorm)
    language = count(theirs.model.language_model) + (0 if tied else count(theirs.lm_head))
    assert language / 1e9 == pytest.approx(billions, abs=1e-3)
    read = llava_config(config.to_dict())
    assert dataclasses.replace(read, remat=PRESETS[preset].remat) == PRESETS[preset]


SMOLVLM_256M = {
    "scale_factor": 4,
    "image_token_id": 49190,
    "text_config": {
        "model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "rms_norm_eps": 1e-5, "pad_token_id": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "vision_config": {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16},
}  # fmt: skip
"""As HuggingFaceTB/SmolVLM-256M-Instruct is published."""


def test_smolvlm_256m():
    config = SmolVLMConfig(**SMOLVLM_256M)
    with torch.device("meta"):
        theirs = SmolVLMForConditionalGeneration(config)
    assert ours("smolvlm_256m") == count(theirs) == 256_484_928
    preset = PRESETS["smolvlm_256m"]
    assert preset.image_tokens == 64
    for described in (config.to_dict(), SMOLVLM_256M):
        assert dataclasses.replace(smolvlm_config(described), remat=preset.remat) == preset


LANGUAGE = {
    "openflamingo_3b": (MptConfig, MptForCausalLM, {"d_model": 2048, "n_layers": 24, "n_heads": 16}, 1),
    "openflamingo_4b": (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240},
        2,
    ),
    "openflamingo_9b": (MptConfig, MptForCausalLM, {"d_model": 4096, "n_layers": 32, "n_heads": 32}, 4),
}


@pytest.mark.parametrize("preset", LANGUAGE)
def test_openflamingo(preset):
    """The package's class around transformers' language model and CLIP ViT-L/14 but for its last norm."""
    from tests.unimp_jax.interop.reference import flamingo

    config, kind, sizes, every = LANGUAGE[preset]
    layers = "gpt_neox.layers" if kind is GPTNeoXForCausalLM else "transformer.blocks"
    with torch.device("meta"):
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
            )
        )
        theirs = flamingo(kind(config(vocab_size=50432, **sizes)), tower, 1024, every, layers)
    expected = count(theirs) - count(
        next(module for name, module in tower.named_modules() if name.endswith("post_layernorm"))
    )
    if preset == "openflamingo_3b":
        # MPT-1B normalises queries and keys (q_ln, k_ln, without bias), of which transformers' MPT knows nothing.
        expected += 24 * 2 * 2048
    assert ours(preset) == expected
