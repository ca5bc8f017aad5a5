"""A tokenizer trained on a catalogue, which can be read without transformers, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""The class names under which transformers saves such tokenizers (from version 5 on, and before)."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")


def train_tokenizer(texts: Sequence[str], size: int, whole: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of at most `size` tokens, with <pad>, <s> and </s>; it can encode any text. Each of the
    texts in `whole` becomes one token."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size - len(whole), 0),  # bytes are tokens in any case
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, lstrip=True) for text in whole])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


class TrainedTokenizer:
    """The part of the interface of transformers' `PreTrainedTokenizerFast` that a vocabulary uses."""

    unk_token_id = None

    def __init__(self, backend_tokenizer: Tokenizer, special_tokens: dict[str, str]):
        """Wraps a tokenizer; `special_tokens` are keyed by the names in `SPECIAL_TOKENS`."""
        self.backend_tokenizer, self.special_tokens = backend_tokenizer, special_tokens
        self.bos_token_id, self.eos_token_id, self.pad_token_id = map(self._id, SPECIAL_TOKENS)

    def _id(self, name: str) -> Any:
        return self.backend_tokenizer.token_to_id(self.special_tokens[name])

    @property
    def all_special_tokens(self) -> list[str]:
        return list(self.special_tokens.values())

    @property
    def all_special_ids(self) -> list[int]:
        return [self._id(name) for name in self.special_tokens]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    def get_added_vocab(self) -> dict[str, int]:
        return {token.content: id for id, token in sorted(self.added_tokens_decoder.items())}

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab()

    def __call__(self, text: Any, *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
        """Encodes one text."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[Any]:
        return [self.backend_tokenizer.id_to_token(id) for id in ids]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return self.backend_tokenizer.decode(ids, skip_special_tokens=False)

    def save_pretrained(self, folder: Path) -> None:
        self.to_transformers().save_pretrained(folder)

    def to_transformers(self) -> PreTrainedTokenizerFast:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=self.backend_tokenizer, **self.special_tokens)


def read_trained_tokenizer(folder: Path) -> TrainedTokenizer | None:
    """Returns the tokenizer in a folder; None if its `tokenizer_config.json` is not like that of a trained one. Raises
    exceptions of any class if the folder has no tokenizer, or its files are damaged."""
    described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {name: described.pop(name, None) for name in SPECIAL_TOKENS}
    plain = described.pop("tokenizer_class", None) in GENERIC and all(isinstance(one, str) for one in special.values())
    if not plain or described.keys() - {"backend", "model_max_length"}:
        return None
    return TrainedTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), special)
