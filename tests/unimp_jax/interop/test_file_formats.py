"""Files that are no weights, arrays whose numbers are none, ids with gaps: named with what to do, by every reader."""

import functools
import json
import struct
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from tests.unimp_jax.interop.small_llama import LLAMA, arrays, refused
from tests.unimp_jax.interop.support import write_config
from tests.unimp_jax.interop.test_bad_input import LAST, save_tokenizer
from unimp_jax.interop.checked import check_arrays, read_finite
from unimp_jax.interop.feature_extractors import read_clip, read_inception
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.lpips import read_lpips
from unimp_jax.interop.tokenizers import add_flamingo_tokens
from unimp_jax.interop.vqgan import read_vqgan
from unimp_jax.interop.weights import Stored, Weights, open_weights, read_json
from unimp_jax.model import DecoderConfig

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 538090408\n".encode()
LFS = " is a Git LFS pointer (134 bytes), not {}; run `git lfs pull` in its folder"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>caf\xc3\xa9</body></html>"
READERS = {"model.safetensors": "safetensors", "pytorch_model.bin": "torch", "model.gguf": "GGUF", "model.pt": "torch"}
STAND_INS = {
    "pointer": (POINTER, LFS),
    "pointer of git-annex": (b"/annex/objects/MD5E-s5--a.bin\n", " is a git-annex pointer (30 bytes), not {}; run"),
    "page": (PAGE, " is a web page (HTML or XML, 82 bytes), not {}; fetch it again, after signing in"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', " is a web page (HTML or XML, 61 bytes)"),
    "text": (b"404: Not Found", ' is text (14 bytes: "404: Not Found"), not {}; fetch it again'),
    "JSON": (b'{"error":"Invalid credentials"}', ' is text (31 bytes: "{"error":"Invalid credentials"}"), not {}'),
    "UTF-16": ("Not Found".encode("utf-16"), " is text (20 bytes"),
    "empty": (b"", ": truncated, or not a {kind} file (it is empty); fetch it again"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), " is packed with gzip, not {} ({kind}); unpack it"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), " is an HDF5 file (from Keras or TensorFlow), not {}"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(40), " is a numpy array, not {}"),
    "tar": (b"model.bin".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), " is a tar archive, not {}; unpack it"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("what", STAND_INS)
def test_a_file_in_the_place_of_weights(name, what, tmp_path):
    content, told = STAND_INS[what]
    path = tmp_path / name
    path.write_bytes(content)
    for opened in (path, tmp_path):
        with pytest.raises(WeightsError) as error:
            open_weights(opened)
        expected = f"{path}{told.replace('{}', 'the weights').replace('{kind}', READERS[name])}"
        assert str(error.value).startswith(expected)


def test_formats_under_the_names_of_others(tmp_path):
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "x.bin")
    (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / "y.safetensors").write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    for name, told in {
        "x.bin": " is a safetensors file; its name must end in .safetensors",
        "x.safetensors": " is a zip archive (torch writes these too), not the weights (safetensors)",
        "y.safetensors": " is a GGUF file, not the weights (safetensors)",
    }.items():
        with pytest.raises(WeightsError) as error:
            open_weights(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}{told}")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "vocab.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(("content", "told"), [STAND_INS["pointer"], STAND_INS["page"]], ids=["pointer", "page"])
def test_a_file_in_the_place_of_a_configuration_or_a_tokenizer(name, content, told, tmp_path):
    folder = write_config(tmp_path / "llama", LLAMA)
    save_file(arrays(), folder / "model.safetensors")
    save_tokenizer(folder, words=20)
    (folder / name).write_bytes(content)
    assert refused(ImportConfig(language=str(folder)), tmp_path).startswith(
        f"{folder / name}{told.format('the file itself')}"
    )


def test_json_in_other_encodings_is_read_and_nested_json_refused(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding=encoding)
        assert read_json(tmp_path / "config.json") == {"model_type": "llama"}
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"config\.json: not valid JSON"):
        read_json(tmp_path / "config.json")


def test_index_that_names_a_pointer(tmp_path):
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shard = tmp_path / "model-00001-of-00001.safetensors"
    shard.write_bytes(POINTER)
    with pytest.raises(WeightsError) as error:
        open_weights(tmp_path)
    assert str(error.value) == f"{shard}{LFS.format('the weights')}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "model-00001-of-00002.safetensors",
            "its index model.safetensors.index.json is missing; download the complete folder",
        ),
        (
            "pytorch_model-00001-of-00002.bin",
            "its index pytorch_model.bin.index.json is missing; download the complete folder",
        ),
        ("smol-00001-of-00002.gguf", "is one part of a split file; join the parts with `llama-gguf-split --merge`"),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_shards_without_an_index(name, told, shards, tmp_path):
    for number in range(1, shards + 1):
        (tmp_path / name.replace("00001", f"{number:05}")).write_bytes(b"")
    with pytest.raises(WeightsError) as error:
        open_weights(tmp_path)
    assert name in str(error.value)
    assert told in str(error.value)


def test_every_other_reader_names_a_pointer(tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(POINTER)
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    (tmp_path / "vgg.pth").write_bytes(POINTER)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "clip" / "model.safetensors").write_bytes(POINTER)
    for read, path in {
        read_vqgan: tmp_path,
        read_inception: tmp_path / "vgg.pth",
        read_clip: tmp_path / "clip",
        lambda path: read_lpips([path]): tmp_path / "vgg.pth",
        lambda path: read_vqgan(path): tmp_path / "vgg.pth",
    }.items():
        with pytest.raises(WeightsError, match="is a Git LFS pointer"):
            read(path)


# Torch


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        (lambda: {"x": Path("a")}, " (it contains code, pathlib."),
        (lambda: {"x": Fraction(1, 2)}, " (it contains code, fractions.Fraction); save its state_dict"),
    ],
)
def test_torch_files_with_code_are_refused_without_the_advice_to_run_it(holds, told, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(holds(), tmp_path / "x.pt")
    with pytest.raises(WeightsError) as error:
        open_weights(tmp_path / "x.pt")
    assert told in str(error.value)
    assert not {"weights_only", "Weights only", "trusted"} & set(str(error.value).split())
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("content", [b"\x80\x02garbage\xff", b"\x00" * 50, b"\x80\x05\x95\xff\xff\xff" + bytes(99)])
def test_bytes_that_are_no_torch_file_are_reported_without_advice(content, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.bin: truncated, or not only tensors") as error:
        open_weights(tmp_path / "x.bin")
    assert "weights_only" not in str(error.value)
    assert "Weights only" not in str(error.value)


# Types and numbers


def with_kind(path: Path, key: str, kind: str, shape: tuple[int, ...], size: int) -> None:
    """A safetensors file with arrays of LLAMA and one of a type that numpy need not know."""
    header, data = {}, b""
    for name, array in arrays().items():
        content = array.tobytes() if name != key else bytes(size)
        described = ("F32", array.shape) if name != key else (kind, shape)
        header[name] = {"dtype": described[0], "shape": described[1], "data_offsets": [len(data), len(data + content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("kind", "named", "shape", "size"),
    [
        ("I8", "int8", (16, 24), 384),
        ("U8", "uint8", (192, 1), 192),  # as bitsandbytes packs 4 bits
        ("F8_E4M3", "float8_e4m3fn", (16, 24), 384),
        ("F8_E5M2", "float8_e5m2", (16, 24), 384),
        ("F4", "F4", (16, 24), 192),
        ("BOOL", "bool", (16, 24), 384),
        ("I64", "int64", (16, 24), 3072),
        ("C64", "complex64", (16, 24), 3072),
    ],
)
def test_types_that_are_not_those_of_weights(kind, named, shape, size, tmp_path):
    folder = write_config(tmp_path / "llama", LLAMA)
    with_kind(folder / "model.safetensors", LAST, kind, shape, size)
    said = refused(ImportConfig(language=str(folder)), tmp_path)
    assert said.startswith(f"{folder}: {LAST} has the dtype {named}; supported dtypes of weights are float16,")
    assert "dequantise the weights first, or use the publisher's weights in bfloat16" in said


@pytest.mark.parametrize("name", ["int8", "uint8", "bool", "complex64", "float8_e4m3fn", "int64"])
def test_types_in_torch_files(name, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(3).to(getattr(torch, name)), "y": torch.zeros(3)}, tmp_path / "x.pt")
    weights = open_weights(tmp_path / "x.pt")
    assert weights.arrays["y"].kind == "float32"
    with pytest.raises(WeightsError, match=f"x has the dtype {name}; supported dtypes"):
        check_arrays(weights, {"x": (3,)})


def test_sparse_tensors_and_those_without_values(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.eye(3).to_sparse(), "y": torch.zeros(3, device="meta")}, tmp_path / "x.pt")
    weights = open_weights(tmp_path / "x.pt")
    for key, shape, told in (("x", (3, 3), "sparse float32"), ("y", (3,), "float32 without values")):
        with pytest.raises(WeightsError, match=f"{key} has the dtype {told}"):
            check_arrays(weights, {key: shape})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_floats_are_read_and_must_be_finite(dtype, tmp_path):
    for bad, count in (([], 0), ([np.nan], 1), ([np.inf, -np.inf], 2)):
        array = np.array([1.0, *bad, 2.0], dtype)
        save_file({"x": array, "buffer": np.arange(3)}, tmp_path / "x.safetensors")
        weights = open_weights(tmp_path / "x.safetensors")
        assert check_arrays(weights, {"x": array.shape}) == ["x"]
        if not count:
            np.testing.assert_array_equal(read_finite(weights, "x"), array)
            continue
        with pytest.raises(WeightsError, match=f"{count} of the {2 + count} values of x (is|are) NaN, infinite"):
            read_finite(weights, "x")


def test_numbers_that_float32_cannot_hold_and_arrays_of_every_shape():
    arrays = {
        "large": np.array([1e300]), "scalar": np.float32(np.nan), "none": np.zeros((0, 3), np.float32),
        "wide": np.full((2, 5_000_000), np.inf, np.float32)[:, ::2],
    }  # fmt: skip
    stored = {key: Stored(np.shape(x), "float32", functools.partial(np.asarray, x)) for key, x in arrays.items()}
    weights = Weights("weights", stored)
    assert read_finite(weights, "none").shape == (0, 3)
    for key, told in {"large": "1 of the 1", "scalar": "1 of the 1", "wide": "5000000 of the 5000000"}.items():
        with pytest.raises(WeightsError, match=f"{told} values of {key} "):
            read_finite(weights, key)


def test_nan_in_a_language_model(tmp_path):
    folder = write_config(tmp_path / "llama", LLAMA)
    weights = arrays()
    weights[LAST] = np.full_like(weights[LAST], np.nan)
    save_file(weights, folder / "model.safetensors")
    said = refused(ImportConfig(language=str(folder)), tmp_path)
    assert said.startswith(f"{folder}: 384 of the 384 values of {LAST} are NaN, infinite or beyond float32")


@pytest.mark.parametrize(
    "beside", ["SCB", "weight_scale", "weight_scale_inv", "weight.absmax", "qweight", "weight_packed", "scales"]
)
def test_scales_beside_an_array_say_that_it_is_quantised(beside, tmp_path):
    folder = write_config(tmp_path / "llama", LLAMA)
    weights = arrays() | {LAST.replace("weight", beside): np.ones(16, np.float32)}
    if beside in ("qweight", "weight_packed"):
        del weights[LAST]
    save_file(weights, folder / "model.safetensors")
    said = refused(ImportConfig(language=str(folder)), tmp_path)
    assert f"{LAST} is quantised (there is also {LAST.replace('weight', beside)}): dequantise the weights first" in said


def test_whole_numbers_that_are_no_weights_are_passed_over(tmp_path):
    folder = write_config(tmp_path / "llama", LLAMA)
    buffers = {"model.position_ids": np.arange(5), "model.layers.0.self_attn.bias": np.ones((4, 4), bool)}
    save_file(arrays() | buffers, folder / "model.safetensors")
    weights = open_weights(folder)
    assert len(check_arrays(weights, {key: array.shape for key, array in arrays().items()})) == 21


@pytest.mark.parametrize("how", [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, "fp8"])
def test_a_configuration_that_says_quantised(how, tmp_path):
    folder = write_config(tmp_path / "llama", LLAMA | {"quantization_config": how})
    save_file(arrays(), folder / "model.safetensors")
    said = refused(ImportConfig(language=str(folder)), tmp_path)
    assert "its config.json describes quantised weights" in said
    assert "remove quantization_config from it" in said


# Tokenizers


def test_tokenizer_with_gaps_in_its_ids(tmp_path):
    """The largest id decides: below the model's rows it is imported, beyond them refused, though tokens are few."""
    language = write_config(tmp_path / "llama", LLAMA)
    save_file(arrays(), language / "model.safetensors")
    save_tokenizer(language, words=10, last=19)
    import_weights(ImportConfig(language=str(language)), tmp_path / "start")
    read = AutoTokenizer.from_pretrained(tmp_path / "start" / "tokenizer")
    assert read.convert_tokens_to_ids("w9") == 19
    save_tokenizer(language, words=10, last=900)
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert "it uses ids up to 900, but the model has 20 tokens" in said


def test_tokens_of_open_flamingo_never_take_the_id_of_another(tmp_path):
    rows = DecoderConfig(vocab_size=20)
    for last, added in ((19, [5, 6]), (4, [5, 6])):
        save_tokenizer(tmp_path / str(last), words=5, last=last)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / str(last))
        add_flamingo_tokens(tokenizer, rows)
        assert tokenizer.convert_tokens_to_ids(["<|endofchunk|>", "<image>"]) == added
    save_tokenizer(tmp_path / "gap", words=5, last=5)
    with pytest.raises(
        WeightsError, match=r"ids of the tokenizer have gaps, so <\|endofchunk\|> gets the id 5, which 'w4' already has"
    ):
        add_flamingo_tokens(AutoTokenizer.from_pretrained(tmp_path / "gap"), rows)
