"""Encoders of item texts or images: models of transformers, WordLlama, or parts of a trained run."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_pipelines.attribute_texts import CATEGORY
from data_pipelines.errors import DataError
from data_pipelines.image_decoding import decode_image
from data_pipelines.images import decode
from data_pipelines.plain_text import read_tokenizer, without_long_words
from data_pipelines.schema import Item
from data_pipelines.vocabulary import Vocabulary
from experiments.feature_extractors import own_tower
from experiments.parameters import Checkpoint
from experiments.run import open_model
from unimp_jax.interop.exporting import to_host
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.weights import locate, reason
from unimp_jax.model import UniMP

LONGEST = 512
"""Maximum number of tokens that a text encoder of transformers reads, if its own limit is not lower."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

Pooling = Literal["mean", "cls", "pooler"]
ReadAndEncode = tuple[Callable[[Item], Any], Callable[[list[Any]], np.ndarray]]
"""`read` and `encode` of an `ItemEncoder`."""


@dataclasses.dataclass(frozen=True)
class ItemEncoderConfig:
    """The encoder of the items: exactly one of `text`, `image`, `wordllama` and `run` must be given."""

    text: str | None = None
    """A text encoder of transformers, as a folder or hub id, for the title, attributes and categories of an item."""
    image: str | None = None
    """A vision encoder of transformers, as a folder or hub id: its image features (CLIP, SigLIP), its pooled output, or
    else the mean of its last hidden states."""
    wordllama: bool = False
    """The mean of WordLlama's word vectors over the same text; they come with the package `wordllama`."""
    run: Path | None = None
    """A run folder: the mean over patches of its vision tower's output for an image."""
    run_text: bool = False
    """With `run`, use the mean of the embeddings of the text's tokens instead."""
    pooling: Pooling = "mean"
    """Output of a text encoder: the mean of its last hidden states, that of the first token, or the pooler's output."""
    checkpoint: Checkpoint = "best"
    """With `run`: the best checkpoint by validation, or the latest."""

    def __post_init__(self) -> None:
        named = [bool(self.text), bool(self.image), self.wordllama, self.run is not None]
        if sum(named) != 1:
            raise ValueError(
                f"{sum(named)} encoders are given; give exactly one of --text MODEL, --image MODEL, --wordllama "
                "True and --run FOLDER"
            )
        if self.run_text and self.run is None:
            raise ValueError("run_text needs a run; give its folder with --run")

    @property
    def sees(self) -> bool:
        """Whether it encodes images instead of texts."""
        return bool(self.image) or (self.run is not None and not self.run_text)


@dataclasses.dataclass(frozen=True, eq=False)
class ItemEncoder:
    """A function that computes vectors of items.

    Attributes:
      read: returns the input of `encode` for an item that has a text or an image; raises DataError if it cannot be
        decoded.
      encode: the inputs of one item or more -> float32 [N, F].
      probe: float32 [F], the vector of one fixed item, which tells encoders of the same name apart.
    """

    name: str
    read: Callable[[Item], Any]
    encode: Callable[[list[Any]], np.ndarray]
    probe: np.ndarray


def open_item_encoder(config: ItemEncoderConfig) -> ItemEncoder:
    """Opens the encoder of a configuration. Raises DataError if a package is missing or the folder holds no run,
    WeightsError if the model does not exist or is not an encoder of this kind."""
    name = config.text or config.image or str(config.run or "WordLlama")
    if config.text:
        read, encode = text_encoder(name, config.pooling)
    elif config.image:
        read, encode = image_encoder(name)
    elif config.run:
        read, encode = run_encoder(config.run, config.checkpoint, images=config.sees)
    else:
        read, encode = item_text, wordllama_encoder()
    drawn = io.BytesIO()
    Image.linear_gradient("L").save(drawn, "PNG")
    try:
        probe = encode([read(Item("", "An item.", image=drawn.getvalue()))])
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:  # for models of other kinds
        raise WeightsError(
            f"{name}: not an encoder of {'images' if config.sees else 'texts'} ({reason(error)})"
        ) from error
    return ItemEncoder(name, read, encode, probe[0])


def item_text(item: Item) -> str:
    """Returns the text of an item without repetitions: its title, unless some source gave its id in place of one, its
    attributes with their names, and its categories."""
    title = "" if item.title == item.item_id else item.title
    names: dict[str, str] = {}
    for name, text in [("", title), *item.attributes, (CATEGORY, ", ".join(item.categories))]:
        if text := without_long_words(text.strip()):
            names.setdefault(text, name)
    return ". ".join(f"{name}: {text}" if name else text for text, name in names.items())


def text_encoder(name: str, pooling: Pooling) -> ReadAndEncode:
    """Opens a text encoder of transformers; WeightsError if it is missing, or has no tokenizer or no trained pooler."""
    folder = locate(name)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):  # otherwise transformers invents one
        raise WeightsError(
            f"{name}: not an encoder of texts, because it has no tokenizer ({', '.join(TOKENIZER_FILES)})"
        )
    model, has_pooler = pretrained(name, folder)
    if pooling == "pooler" and not has_pooler:
        raise WeightsError(f"{name}: it has no trained pooler; use --pooling mean or cls")
    import torch

    tokenizer = read_tokenizer(str(folder))
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    length = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST), LONGEST)

    def encode(texts: list[str]) -> np.ndarray:
        inputs = tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt",
            split_special_tokens=True,  # attributes are plain text, whatever they contain
        ).to(model.device)  # fmt: skip
        with torch.inference_mode():
            output = model(**inputs)
        if pooling == "pooler":
            return output.pooler_output.cpu().numpy()
        if pooling == "cls":
            return output.last_hidden_state[:, 0].cpu().numpy()
        mask = inputs["attention_mask"][..., None]
        return ((output.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu().numpy()

    return item_text, encode


def image_encoder(name: str) -> ReadAndEncode:
    """Opens a vision encoder of transformers; WeightsError if it is missing, or has no settings of preprocessing."""
    folder = locate(name)
    model, has_pooler = pretrained(name, folder)
    import torch
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the type depends on the model
        raise WeightsError(f"{name}: not an encoder of images ({reason(error)})") from error

    def read(item: Item) -> Any:
        return processor(images=decode_image(item.image), return_tensors="pt")

    def encode(images: list[Any]) -> np.ndarray:
        inputs = {key: torch.cat([image[key] for image in images]).to(model.device) for key in images[0]}
        with torch.inference_mode():
            output = getattr(model, "get_image_features", model)(**inputs)
        if isinstance(output, torch.Tensor):
            return output.cpu().numpy()
        pooled = getattr(output, "pooler_output", None) if has_pooler else None
        pooled = output.last_hidden_state.mean(1) if pooled is None else pooled
        return pooled.flatten(1).cpu().numpy()

    return read, encode


def pretrained(name: str, folder: Path) -> tuple[Any, bool]:
    """Loads (a model of transformers in float32, on a GPU if there is one; whether its pooler is trained, if it has
    one); WeightsError if torch is not installed, or the folder holds no complete model."""
    try:
        import torch
    except ImportError as error:
        raise WeightsError(f"{name}: needs torch: pip install 'unimp_jax[torch]'") from error
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model, loaded = AutoModel.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the type depends on the model
        raise WeightsError(f"{name}: transformers cannot read this model ({reason(error)})") from error
    missing = sorted(loaded["missing_keys"])  # transformers initialises them randomly
    if lost := [key for key in missing if "pooler" not in key]:
        raise WeightsError(f"{name}: {len(lost)} of its weights are missing, such as {lost[0]}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), not missing


def wordllama_encoder() -> Callable[[list[str]], np.ndarray]:
    """Returns the `encode` function of WordLlama's word vectors (256 features); DataError if the package is missing."""
    try:
        import wordllama
    except ImportError as error:
        raise DataError("WordLlama is not installed: pip install 'unimp_jax[wordllama]'") from error
    package = Path(wordllama.__file__).parent  # version 0.4.0 looks for its bundled tokenizer only in a cache
    return wordllama.WordLlama.load(cache_dir=package, disable_download=True).embed


def run_encoder(folder: Path, checkpoint: Checkpoint, *, images: bool) -> ReadAndEncode:
    """Opens a run's vision tower, or its embeddings, as an encoder; DataError if the folder holds no run."""
    data, predictor, _ = open_model(folder, checkpoint)
    if not images:
        return item_text, embedded_texts(predictor.model(), data.vocabulary)
    tower, size, fit = own_tower(predictor), data.config.model.vision.image_size, data.config.images.fit
    return lambda item: decode(item.image, size, fit), lambda shown: tower.see(np.stack(shown))


def embedded_texts(net: UniMP, vocabulary: Vocabulary) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns a function from texts to the mean embeddings of their tokens: float32 [N, D], zeros if there are none."""
    table = to_host(net.embeddings.base[...], ()).astype(np.float32)
    zeros = np.zeros(table.shape[1], np.float32)

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.stack([table[row].mean(axis=0) if row else zeros for row in vocabulary.encode_all(texts)])

    return encode
