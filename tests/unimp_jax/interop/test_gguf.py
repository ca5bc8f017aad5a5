"""LLaMAs in llama.cpp's files: the logits that transformers gets from the same file, quantised ones too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unimp_jax.interop.support import all_logits, imported, shake, text_batch
from tests.unimp_jax.interop.test_bad_input import refused
from unimp_jax.interop.importing import ImportConfig
from unimp_jax.interop.start import read_start
from unimp_jax.model import GatedCrossAttentionConfig, ModelConfig, ResamplerConfig, RotaryScaling, VisionConfig

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab"]
OTHERS = ModelConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_width=24),
    resampler=ResamplerConfig(layers=1, heads=2, head_dim=8, latents=3),
    gated=GatedCrossAttentionConfig(every=1, heads=2, head_dim=8),  # the start knows nothing of it
    compute_dtype="float32",
)


def llama(**changes) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        **({"num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 1e-5} | changes),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    shake(model)
    return model


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, `permute`."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(
    path: Path, model: LlamaForCausalLM, kind="F32", architecture="llama", scaling: str | None = None,
    frequencies: bool = False, more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:  # fmt: skip
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if scaling:
        writer.add_string("llama.rope.scaling.type", scaling)
        writer.add_float32("llama.rope.scaling.factor", 3.0)
    if frequencies:
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([0.0] * len(WORDS))
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if key.split(".")[-2] in heads:
            array = permuted(array, heads[key.split(".")[-2]])
        own = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        data = gguf.quants.quantize(array, own)
        writer.add_tensor(their_name(key), data, raw_dtype=own)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def their_name(key: str) -> str:
    """As the gguf package translates transformers' names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    return f"{names.get_name(key.removesuffix('.weight'))}.weight"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("F32", {}),
        ("F16", {"num_key_value_heads": 4}),
        ("BF16", {"num_key_value_heads": 1}),
        ("Q8_0", {"tie_word_embeddings": True}),
        ("Q4_0", {}),
    ],
)
def test_logits_equal_those_of_transformers(kind, changes, tmp_path):
    path = write(tmp_path / "model.gguf", llama(**changes), kind)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    ours = imported(ImportConfig(language=str(path)), tmp_path / "start", OTHERS)
    tokens = np.random.default_rng(0).integers(0, len(WORDS), (2, 13), dtype=np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long), use_cache=False).logits.numpy()
    assert expected.std() > 0.05, "the tolerance is far below what there is to see"
    found = np.asarray(all_logits(ours, text_batch(tokens, OTHERS.vision.image_size)))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    if kind == "F32":
        assert read_start(tmp_path / "start").geometry.decoder.rotary_base == 500.0
        assert (tmp_path / "start" / "tokenizer" / "tokenizer.json").is_file()


def test_another_architecture(tmp_path):
    path = write(tmp_path / "model.gguf", llama(), architecture="qwen2")
    assert "the model is of family 'qwen2'; only GGUF files of LLaMA are supported" in refused(
        ImportConfig(language=str(path)), tmp_path
    )


def test_scaled_positions(tmp_path):
    path = write(tmp_path / "model.gguf", llama(), scaling="yarn")
    assert "rotary positions of type 'yarn' are not supported" in refused(ImportConfig(language=str(path)), tmp_path)


def test_linear_scaling(tmp_path):
    config = ImportConfig(language=str(write(tmp_path / "model.gguf", llama(), scaling="linear")))
    imported(config, tmp_path / "start", OTHERS)
    assert read_start(tmp_path / "start").geometry.decoder.rotary_scaling == RotaryScaling("linear", factor=3.0)


@pytest.mark.parametrize("name", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_a_factor_without_a_kind_scales_linearly_as_in_llama_cpp(name, tmp_path):
    path = write(tmp_path / "model.gguf", llama(), more=lambda writer: writer.add_float32(name, 3.0))
    imported(ImportConfig(language=str(path)), tmp_path / "start", OTHERS)
    assert read_start(tmp_path / "start").geometry.decoder.rotary_scaling == RotaryScaling("linear", factor=3.0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (lambda writer: writer.add_uint32("llama.rope.dimension_count", 8), "partial_rotary_factor 0.5"),
        (lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32)), "attention_bias True"),
        (lambda writer: writer.add_tensor("blk.0.ffn_up.bias", np.ones(96, np.float32)), "mlp_bias True"),
    ],
)
def test_parts_that_our_llama_lacks_are_refused(more, said, tmp_path):
    path = write(tmp_path / "model.gguf", llama(), more=more)
    assert f"{said} is not supported" in refused(ImportConfig(language=str(path)), tmp_path)


def test_frequencies_of_their_own(tmp_path):
    """llama.cpp keeps what Llama 3's scaling makes of each frequency, not what it makes them of."""
    path = write(tmp_path / "model.gguf", llama(), frequencies=True)
    assert "scaled by rope_freqs.weight, which is not supported" in refused(ImportConfig(language=str(path)), tmp_path)


def test_a_quantisation_that_the_gguf_package_does_not_read_names_the_tensor(tmp_path, monkeypatch):
    quantize, unread = gguf.quants.quantize, gguf.GGMLQuantizationType.Q8_1
    with pytest.raises(NotImplementedError):
        gguf.quants.dequantize(np.zeros((1, 36), np.uint8), unread)

    def zeros_of_unread(array: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        if kind != unread:
            return quantize(array, kind)
        return np.zeros(gguf.quants.quant_shape_to_byte_shape(array.shape, kind), np.uint8)

    monkeypatch.setattr(gguf.quants, "quantize", zeros_of_unread)
    path = write(tmp_path / "model.gguf", llama(), unread.name)
    said = refused(ImportConfig(language=str(path)), tmp_path)
    assert "model.gguf: token_embd.weight cannot be read (Dequantization for Q8_1 is not yet implemented)" in said


@pytest.mark.parametrize("size", [0, 3, 100, 20_000, -64])
def test_truncated(size, tmp_path):
    path = write(tmp_path / "model.gguf", llama())
    path.write_bytes(path.read_bytes()[:size])
    assert "model.gguf: truncated, or not a GGUF file" in refused(ImportConfig(language=str(path)), tmp_path)
