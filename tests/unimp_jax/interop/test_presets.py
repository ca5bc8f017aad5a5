"""Presets have as many parameters as the classes they are named after, built without memory for them."""

import dataclasses
import math

import pytest

from unimp_jax.interop.idefics import model_config
from unimp_jax.interop.layout import model_shapes
from unimp_jax.model.presets import PRESETS

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    CLIPVisionModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    MptConfig,
    MptForCausalLM,
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
