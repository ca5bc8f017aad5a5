"""One tokenizer that knows every token of a vocabulary, for programs that have no `Vocabulary`."""

import copy
import json
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, normalizers

from data_pipelines.errors import DataError
from data_pipelines.plain_text import table_size
from data_pipelines.trained_tokenizer import TrainedTokenizer
from data_pipelines.vocabulary import IMAGE_MARKER, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def whole_tokenizer(vocabulary: Vocabulary) -> "PreTrainedTokenizerBase":
    """Returns the base tokenizer with reserved tokens up to `base_size`, followed by the new tokens under their ids.

    `Vocabulary.text` is the inverse: the tokenizer encodes such a text to the same tokens. Spaces before new tokens are
    ignored. Processors of Idefics and SmolVLM put tokens around images; those that a vocabulary lacks are dropped.

    Raises:
      DataError: the tokenizer does not give a new token the id it must have.
    """
    known = vocabulary.tokenizer
    tokenizer = copy.deepcopy(known.to_transformers() if isinstance(known, TrainedTokenizer) else known)
    if len(tokenizer) < table_size(tokenizer):
        fill_gaps(tokenizer)
    reserved = [f"<base_reserved_{number}>" for number in range(len(tokenizer), vocabulary.base_size)]
    names = [*reserved, *vocabulary.new_tokens]
    tokenizer.add_tokens([AddedToken(name, lstrip=True, normalized=False) for name in names])
    for number, name in enumerate(vocabulary.new_tokens):
        found = tokenizer.convert_tokens_to_ids(name)
        if found != vocabulary.base_size + number:
            raise DataError(f"the tokenizer gives {name!r} the id {found}, not {vocabulary.base_size + number}")
    if tokenizer.bos_token is None:
        tokenizer.bos_token = "<s>"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inner, absent = tokenizer.backend_tokenizer, {*IMAGE_MARKER} - tokenizer.get_vocab().keys()
    if drops := [normalizers.Replace(name, "") for name in sorted(absent)]:
        inner.normalizer = normalizers.Sequence([*drops, inner.normalizer] if inner.normalizer else drops)
    tokenizer.padding_side = "left"  # generation needs the prompt to end at the last position
    return tokenizer


def fill_gaps(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Assigns unused ids to reserved tokens, because the ids of added tokens continue from the token count; raises
    DataError if the numbering of this kind of tokenizer is not known."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, ids = described["model"]["vocab"], tokenizer.get_vocab()
    if not isinstance(vocabulary, dict):
        raise DataError(
            "the ids of the tokenizer have gaps, which cannot be filled in a tokenizer of type "
            f"{described['model']['type']}"
        )
    free = sorted(set(range(table_size(tokenizer))) - set(ids.values()))
    described["model"]["vocab"] = vocabulary | ids | {f"<base_reserved_{id}>": id for id in free}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(described))
