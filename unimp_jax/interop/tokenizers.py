"""The tokenizer of imported weights: finds and reads it, and checks that it fits the language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimp_jax.interop.file_formats import check_file_format
from unimp_jax.interop.gguf import gguf_file
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.weights import reason
from unimp_jax.model import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files that a tokenizer may be read from."""
ONE_OF = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
"""Files of which a folder with a tokenizer has at least one."""


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """Reads the tokenizer of a folder, of a file's folder, or of a GGUF file; returns None if there is none, and raises
    WeightsError if it cannot be read."""
    arguments: dict[str, Any] = {}
    if gguf := gguf_file(path):
        path, arguments = gguf.parent, {"gguf_file": gguf.name}
    else:
        path = path.parent if path.is_file() else path
        if not any((path / name).exists() for name in ONE_OF):
            return None
        for file in sorted({file for pattern in FILES for file in path.glob(pattern)}):
            check_file_format(file, "other")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **arguments)
    except Exception as error:  # the type depends on the tokenizer
        raise WeightsError(f"{path}: the tokenizer cannot be read ({reason(error)})") from error


def add_flamingo_tokens(tokenizer: PreTrainedTokenizerBase, decoder: DecoderConfig) -> None:
    """Adds the tokens that open-flamingo adds to a language model's tokenizer, in its order, unless they exist; raises
    WeightsError if one of them gets the id of another token, which happens if ids have gaps."""
    before = {id: name for name, id in tokenizer.get_vocab().items()}
    names = [name for name in ("<|endofchunk|>", "<image>") if name not in tokenizer.get_vocab()]
    if names and len(tokenizer) + len(names) <= decoder.vocab_size:
        tokenizer.add_special_tokens({"additional_special_tokens": names})
    if tokenizer.pad_token is None and len(tokenizer) < decoder.vocab_size:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    for name, id in tokenizer.get_added_vocab().items():
        if before.get(id, name) != name:
            raise WeightsError(
                f"the ids of the tokenizer have gaps, so {name} gets the id {id}, which {before[id]!r} already "
                "has; give a tokenizer with the tokens of open-flamingo (<|endofchunk|> and <image>) with "
                "--tokenizer"
            )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, decoder: DecoderConfig, described: dict[str, Any]) -> None:
    """Raises WeightsError if the tokenizer belongs to another language model."""
    last = max(tokenizer.get_vocab().values(), default=0)
    rows = decoder.vocab_size + decoder.new_tokens
    if last >= rows:
        raise WeightsError(
            f"the tokenizer does not match the language model: it uses ids up to {last}, but the model has {rows} "
            "tokens"
        )
    for name in ("bos_token_id", "eos_token_id"):
        expected, found = described.get(name), getattr(tokenizer, name)
        expected = expected if isinstance(expected, list) else [expected]
        if found is not None and None not in expected and found not in expected:
            raise WeightsError(
                f"the tokenizer does not match the language model: its {name} is {found}, but that of the model "
                f"is {expected[0]}"
            )
