"""Encodes text from the data at bounded length, never as control tokens, whatever the text contains."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import Tokenizer

from data_pipelines.errors import DataError
from data_pipelines.trained_tokenizer import GENERIC, TrainedTokenizer, read_trained_tokenizer

if TYPE_CHECKING:  # the import takes a second or more
    from transformers import PreTrainedTokenizerBase

LONGEST = 512
"""Maximum characters of a word, and of a text without a word limit, since tokenizing cost grows quadratically."""
LONG_RUNS = re.compile(rf"(\S{{{LONGEST}}})\S+|(\s{{{LONGEST}}})\s+")


def shortened(text: str, words: int | None = None) -> str:
    """Returns the first `words` words, separated by single spaces, in a limited number of characters.

    The limit is 32 characters for each word, or `LONGEST` if that is more. Without `words`, the whitespace is kept and
    the text is cut to `LONGEST` characters.
    """
    if words is None:
        return text[:LONGEST]
    characters = max(LONGEST, 32 * words)
    return " ".join(text.split(maxsplit=words)[:words])[:characters].rstrip()


def without_long_words(text: str) -> str:
    """Returns the whole text with each word, and each run of whitespace, cut to `LONGEST` characters."""
    return LONG_RUNS.sub(r"\1\2", text) if len(text) > LONGEST else text


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a folder or of the Hugging Face hub.

    Raises:
      DataError: there is none, or it cannot be read; code that comes with it is never run.
    """
    try:
        if is_generic(Path(name)):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(name)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # tokenizers raise errors of many classes: of another kind, damaged, not installed
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if (Path(name) / "tokenizer.model").is_file() and not (Path(name) / "tokenizer.json").exists():
            reason = "there is only a sentencepiece file; `save_pretrained` of its fast tokenizer writes tokenizer.json"
        raise DataError(f"no tokenizer at {name!r}: {reason}") from error


def read_saved_tokenizer(folder: Path) -> PreTrainedTokenizerBase | TrainedTokenizer:
    """Returns the tokenizer that a vocabulary was saved with; raises the same errors as `read_tokenizer`."""
    try:
        trained = read_trained_tokenizer(folder)
    except Exception:  # transformers then reports the reason
        trained = None
    return read_tokenizer(str(folder)) if trained is None else trained


def is_generic(folder: Path) -> bool:
    """Returns whether a tokenizer is defined by its `tokenizer.json` alone, independently of a model class.

    `AutoTokenizer` reads it identically, but takes seconds to import (and imports PyTorch if installed).
    """
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file() or (folder / "config.json").exists():
        return False
    described = json.loads(file.read_text(encoding="utf-8"))
    return described.get("tokenizer_class") in GENERIC and "auto_map" not in described


def table_size(tokenizer: PreTrainedTokenizerBase | TrainedTokenizer) -> int:
    """Returns the largest id plus one, which can exceed the number of tokens because ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


class PlainText:
    """Encodes text with a tokenizer so that `</s>`, `<image>` and all other control tokens are treated as plain text.

    Added tokens are matched in a text before anything else, and only some are flagged as control tokens. This uses a
    copy of the tokenizer without any added tokens, except runs of whitespace. If its model can still produce a control
    token from text, that token is replaced by the tokens of its characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | TrainedTokenizer):
        added = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}
        kept = {id for id, text in added.items() if text.isspace()}
        controls = {id: text for id, text in added.items() if id not in kept}
        controls |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False))
        unknown = tokenizer.unk_token_id
        if unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
            controls.pop(unknown, None)  # unknown text is encoded as the unknown token
        letters = tokenizer.get_vocab()
        self._spelled = {
            id: [letters[letter] for letter in text if letters.get(letter, id) not in controls]
            for id, text in controls.items()
        }
        self._tokenizer = tokenizer
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        self.digest: str | None = None
        """A digest of everything that determines the tokens of a text; None if it cannot be determined."""
        if self._backend is not None:
            described = json.loads(self._backend.to_str())
            described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] in kept]
            described |= {"post_processor": None, "truncation": None, "padding": None}
            text = json.dumps(described)
            self._backend = Tokenizer.from_str(text)
            # Tokens beyond the model's own are renumbered.
            self._spelled |= {self._backend.token_to_id(added[id]): [id] for id in kept}
            determines = [tokenizers.__version__, text, sorted(self._spelled.items(), key=str)]
            self.digest = hashlib.sha256(json.dumps(determines).encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each text."""
        if not texts:
            return []
        if self._backend is not None:
            rows = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        else:
            rows = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        spelled = self._spelled
        return [
            row if spelled.keys().isdisjoint(row) else [token for id in row for token in spelled.get(id, [id])]
            for row in rows
        ]
