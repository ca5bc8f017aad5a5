"""Complete vision-language models in Hugging Face's format; `config.json` says which model a folder contains."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from unimp_jax.interop import idefics, llava, smolvlm
from unimp_jax.interop.layout import Table, WeightsError
from unimp_jax.interop.matching import WeightSource, source_of
from unimp_jax.interop.weights import Aliases, canonical, open_weights, read_json, renamed, understood
from unimp_jax.model import DecoderConfig, ModelConfig


class Package(Protocol):
    """The functions that each model class provides."""

    @property
    def ALIASES(self) -> Aliases: ...
    def model_config(self, described: dict[str, Any], /) -> ModelConfig: ...
    def table(self, config: ModelConfig, /) -> Table: ...
    def image_size_of(self, settings: dict[str, Any], /) -> Any: ...
    def image_tokens_of(self, processor: dict[str, Any], config: ModelConfig, /) -> int | None: ...


PACKAGES: dict[str, Package] = {"idefics": idefics, "llava": llava, "idefics3": smolvlm, "smolvlm": smolvlm}
"""The model classes by `model_type`."""


def read_vision_language(path: Path) -> tuple[ModelConfig, WeightSource, dict[str, Any]]:
    """Returns (model configuration, weights, the language model's part of the config.json); raises WeightsError if it
    is not such a model or has unsupported parts, or its processor belongs to another model."""
    described = read_json(path / "config.json")
    if (kind := described.get("model_type")) not in PACKAGES:
        raise WeightsError(
            f"{path}: config.json: the vision-language model_type {kind!r} is not supported; supported are "
            f"{', '.join(PACKAGES)}"
        )
    package = PACKAGES[kind]
    config = understood(path, package.model_config, described)
    check_processor(path, package, config)
    return config, weights_of(path, package, config), described.get("text_config") or described


def weights_of(path: Path, package: Package, config: ModelConfig) -> WeightSource:
    """Opens the weights of a folder as those of a model with this configuration."""

    def tabulate(decoder: DecoderConfig) -> Table:
        return package.table(dataclasses.replace(config, decoder=decoder))

    weights = renamed(open_weights(path), lambda key: canonical(key, package.ALIASES))
    return source_of(weights, tabulate, config.decoder)


def check_processor(folder: Path, package: Package, config: ModelConfig) -> None:
    """Raises WeightsError if the processor beside a checkpoint produces images of another size than the tower reads, or
    another number of tokens per image than the model has."""
    file, side = folder / "processor_config.json", config.vision.image_size
    processor = read_json(file) if file.is_file() else {}
    images = folder / "preprocessor_config.json"
    # Since version 5, transformers stores the image processor's settings in the other file.
    settings = read_json(images) if images.is_file() else processor.get("image_processor")
    if settings is not None:
        size = package.image_size_of(settings)
        if {*size.values()} != {side} if isinstance(size, dict) else size != side:
            source_file = images if images.is_file() else file
            raise WeightsError(
                f"{source_file}: the processor makes images of {size}, but the vision tower reads {side} x {side}"
            )
    tokens = package.image_tokens_of(processor, config)
    if tokens not in (None, config.image_tokens):
        raise WeightsError(
            f"{file}: the processor writes {tokens} tokens per image, but the model has {config.image_tokens}"
        )
