"""`unimp import`: combines published weights of one or several packages into a folder to start training from."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimp_jax.interop import gguf, idefics, open_flamingo
from unimp_jax.interop.language import Tabulate, family
from unimp_jax.interop.layout import Table, WeightsError, model_shapes
from unimp_jax.interop.matching import Match, Values, WeightSource, match, patterns, source_of
from unimp_jax.interop.shards import SHARD_BYTES, refuse_existing, whole_folder
from unimp_jax.interop.start import Described, Geometry, write_start
from unimp_jax.interop.tokenizers import add_flamingo_tokens, check_tokenizer, load_tokenizer
from unimp_jax.interop.vision import tower, vision_config, vision_root
from unimp_jax.interop.vision_language import read_vision_language, weights_of
from unimp_jax.interop.vqgan import import_vqgan
from unimp_jax.interop.weights import (
    Stored,
    Weights,
    canonical,
    locate,
    open_weights,
    read_described,
    read_files,
    read_json,
    renamed,
    understood,
)
from unimp_jax.model import DecoderConfig, GatedCrossAttentionConfig, ModelConfig, VisionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD = "embeddings/base_head"
GEOMETRY = "unimp_geometry.json"
"""File beside exported weights with the configuration, if the format itself has no file for it."""


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """The weights to import: local folders, files, or ids of the Hugging Face hub."""

    language: str | None = None
    """A causal language model: GPT-NeoX, MPT, LLaMA, Qwen2 or Qwen3 in Hugging Face's format, or a LLaMA in a GGUF
    file."""
    vision: str | None = None
    """A CLIP or SigLIP model, or its vision tower, in Hugging Face's format."""
    vision_language: str | None = None
    """A complete vision-language model in Hugging Face's format: Idefics; LLaVA with a LLaMA or Qwen and a CLIP or
    SigLIP; Idefics3 or SmolVLM. The type is read from its config.json."""
    open_flamingo: str | None = None
    """An OpenFlamingo checkpoint: a `.pt` or safetensors file, or a folder. If it contains only the trained keys, name
    the language model and the vision tower as well."""
    tokenizer: str | None = None
    """The tokenizer, if it is not beside the language model."""
    heads: int = 8
    """Number of attention heads of OpenFlamingo's resampler and gated blocks, which its checkpoints do not record."""
    vqgan: str | None = None
    """A VQGAN, imported alone: a VQModel of diffusers, or a checkpoint of taming-transformers (`.ckpt`, `.pt`)."""
    vqgan_image_size: int | None = None
    """Image size of the VQGAN in pixels, if it is not 256 and its checkpoint has no configuration (`.yaml`)."""

    @property
    def sources(self) -> list[str]:
        """The named sources of a model's weights."""
        return list(filter(None, (self.language, self.vision, self.vision_language, self.open_flamingo)))


def import_weights(config: ImportConfig, folder: Path, shard_bytes: int = SHARD_BYTES) -> str:
    """Imports weights into `folder`, from which training can start; returns a summary for the user.

    Raises:
      WeightsError: A source cannot be read completely, or the sources do not fit together. Nothing is left behind then.
    """
    refuse_existing(folder)
    if config.vqgan:
        if config.sources:
            raise WeightsError("--vqgan is a separate model and cannot be combined with another source")
        return import_vqgan(locate(config.vqgan), folder, config.vqgan_image_size)
    geometry, sources, described = gather(config)
    tokenizer = tokenizer_of(config)
    if tokenizer is not None and geometry.decoder:
        if config.open_flamingo:
            add_flamingo_tokens(tokenizer, geometry.decoder)
        check_tokenizer(tokenizer, geometry.decoder, described)
    shapes = model_shapes(whole(geometry))
    matched = match(sources, {name: shape for name, shape in shapes.items() if name.split("/")[0] in geometry.parts})
    names = tuple(dict.fromkeys(source.weights.name for source in sources))
    with whole_folder(folder) as temporary:
        write_start(temporary, matched, shapes, Described(geometry, names, matched.unused), shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary / "tokenizer")
    return summary(folder, geometry, matched, tokenizer)


def tokenizer_of(config: ImportConfig) -> "PreTrainedTokenizerBase | None":
    """Returns the tokenizer that is named or found beside the language model; None if there is none. Raises
    WeightsError if the named place contains none, or it cannot be read."""
    place = config.tokenizer or config.vision_language or config.language or config.open_flamingo
    tokenizer = load_tokenizer(locate(place)) if place else None
    if config.tokenizer and tokenizer is None:
        raise WeightsError(f"{config.tokenizer}: the folder has no tokenizer")
    return tokenizer


def whole(geometry: Geometry) -> ModelConfig:
    """Returns a complete model configuration with the imported parts; the other parts only have to be consistent."""
    decoder = geometry.decoder or DecoderConfig()
    gated = geometry.gated or GatedCrossAttentionConfig(every=decoder.layers)
    return geometry.of_model(ModelConfig(decoder=decoder, gated=gated))


def gather(config: ImportConfig) -> tuple[Geometry, list[WeightSource], dict[str, Any]]:
    """Returns (geometry, sources in increasing order of precedence, the language model's config.json)."""
    if config.vision_language:
        if len(config.sources) > 1:
            raise WeightsError("--vision-language is a complete model and can only be combined with --tokenizer")
        model, source, described = read_vision_language(locate(config.vision_language))
        return Geometry.of(model), [source], described
    if not config.sources:
        raise WeightsError(
            "nothing to import; give --vision-language, --vqgan, or any of --language, --vision and --open-flamingo"
        )
    geometry, described, tabulate = Geometry(), dict[str, Any](), None
    sources: list[WeightSource] = []
    if config.language:
        decoder, tabulate, source, described = open_language(locate(config.language))
        geometry = dataclasses.replace(geometry, decoder=decoder)
        sources.append(source)
    if config.vision:
        tower, source = open_vision(locate(config.vision))
        geometry = dataclasses.replace(geometry, vision=tower)
        sources.append(source)
    if config.open_flamingo:
        geometry, sources = add_open_flamingo(locate(config.open_flamingo), config.heads, geometry, sources, tabulate)
    return geometry, sources, described


def exported_values(path: Path, config: ModelConfig) -> Iterator[Values]:
    """Yields all parameters of a model that was exported as an Idefics, each array being read when it is requested.

    Raises:
      WeightsError: The weights cannot be read completely, or do not fit the configuration.
    """
    return match([weights_of(path, idefics, config)], model_shapes(config)).arrays()


def open_language(path: Path) -> tuple[DecoderConfig, Tabulate, WeightSource, dict[str, Any]]:
    """Returns (decoder configuration, the table of its family, the weights, the config.json)."""
    file = gguf.gguf_file(path)
    if file is None and not (path / "config.json").is_file():
        open_weights(path)  # reports a path that is no model at all
        raise WeightsError(f"{path}: config.json is missing, which describes the language model")
    described = understood(path, gguf.described, file) if file else read_json(path / "config.json")
    decoder, tabulate = understood(path, family, described)
    weights = read_files([file], str(file)) if file else open_weights(path)
    return decoder, tabulate, source_of(weights, gguf.table if file else tabulate, decoder), described


def open_vision(path: Path) -> tuple[VisionConfig, WeightSource]:
    described, weights = read_json(path / "config.json"), open_weights(path)
    root = vision_root(weights)
    config = understood(path, vision_config, described)
    return config, WeightSource(weights, tower(root, config))


def add_open_flamingo(
    path: Path, heads: int, geometry: Geometry, sources: list[WeightSource], known: Tabulate | None
) -> tuple[Geometry, list[WeightSource]]:
    """Adds an OpenFlamingo checkpoint, which extends and partly replaces its language model and vision tower; `heads`
    are those of its resampler and gated blocks, if no file beside it says so."""
    weights = renamed(open_weights(path), lambda key: canonical(key, open_flamingo.ALIASES))
    keys = weights.arrays.keys()
    tabulate = known or open_flamingo.tabulate_by_keys(keys)
    geometry_file = (path if path.is_dir() else path.parent) / GEOMETRY
    if geometry_file.is_file():
        exported = Geometry.of(read_described(geometry_file, ModelConfig))
        geometry = dataclasses.replace(exported, decoder=geometry.decoder or exported.decoder)
    if geometry.decoder is None:
        raise WeightsError(f"{path}: give its language model with --language (the checkpoint does not describe it)")
    has_vision = any(key.startswith(open_flamingo.VISION) for key in keys)
    if geometry.vision is None and has_vision:
        raise WeightsError(f"{path}: give its vision tower with --vision (the checkpoint does not describe it)")
    if geometry.vision is None:
        raise WeightsError(f"{path}: has no vision tower; give it with --vision")
    resampler, gated = geometry.resampler, geometry.gated
    if resampler is None or gated is None:
        resampler, gated = open_flamingo.geometry(weights, heads)

    def language(decoder: DecoderConfig) -> Table:
        return tabulate(decoder, open_flamingo.LANGUAGE, open_flamingo.LAYER)

    embeddings = language(geometry.decoder)[0].theirs
    if embeddings not in keys:
        raise WeightsError(f"{weights.name}: the embeddings {embeddings} are missing")
    rows = weights.arrays[embeddings].shape[0]
    decoder = dataclasses.replace(geometry.decoder, vocab_size=rows)
    geometry = Geometry(geometry.vision, resampler, gated, decoder)
    found = source_of(weights, language, decoder)
    # The checkpoint's embedding tables replace the language model's own, which have other numbers of rows. A frozen
    # head is not in the checkpoint: its rows are the first ones of the language model's, as in open-flamingo.
    own = {entry.ours[0] for entry in found.table if entry.theirs in keys}
    table = [entry for entry in found.table if entry.ours[0] != HEAD or HEAD in own]
    table += open_flamingo.trained_table(gated) + (open_flamingo.vision_table(keys) if has_vision else [])
    beside_it = (entry.theirs.split("{")[0] for entry in found.table if not entry.ours[0].startswith("embeddings/"))
    checkpoint = WeightSource(found.weights, table, tuple(beside_it) if known else ())
    return geometry, [*(without_tables(source, own, rows) for source in sources), checkpoint]


def without_tables(source: WeightSource, replaced: set[str], rows: int) -> WeightSource:
    """Returns a source without the replaced embeddings, and with only the first rows of a head that is kept."""
    table = [e for e in source.table if not e.ours[0].startswith("embeddings/") or e.ours[0] not in replaced]
    heads = {e.theirs for e in table if e.ours[0] == HEAD}
    arrays = {key: first_rows(x, rows) if key in heads else x for key, x in source.weights.arrays.items()}
    return dataclasses.replace(source, weights=Weights(source.weights.name, arrays), table=table)


def first_rows(array: Stored, rows: int) -> Stored:
    shape = (*(min(size, rows) for size in array.shape[:1]), *array.shape[1:])
    return dataclasses.replace(array, shape=shape, read=lambda: array.read()[:rows])


def summary(folder: Path, geometry: Geometry, matched: Match, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """Returns which arrays were read and, grouped by pattern, which were not."""
    lines = [f"{folder}: {', '.join(geometry.parts)}"]
    for weights, filled in matched.fillings:
        lines.append(f"{weights.name}: {len(filled)} arrays read")
        for title, keys in (("unused", matched.unused), ("replaced by another source's", matched.replaced)):
            if keys[weights.name]:
                lines.append(f"  {title}: {', '.join(patterns(keys[weights.name]))}")
    if tokenizer is None and geometry.decoder is not None:
        lines.append("no tokenizer was found with the weights; give one with --tokenizer, or when training")
    others = set(whole(geometry).parts) - {"embeddings", *geometry.parts}
    if others:
        lines.append(f"not imported, trained from random weights: {', '.join(sorted(others))}")
    return "\n".join(lines)
