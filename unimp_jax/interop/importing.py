"""`unimp import`: published weights of one or several packages become one start."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from unimp_jax.interop import idefics, open_flamingo
from unimp_jax.interop.clip import transformers_clip, vision_config, vision_root
from unimp_jax.interop.language import Tabulate, family
from unimp_jax.interop.layout import Table, WeightsError
from unimp_jax.interop.matching import Match, Source, match, patterns
from unimp_jax.interop.shards import SHARD_BYTES, refuse_existing, whole_folder
from unimp_jax.interop.stand_ins import refuse_stand_in
from unimp_jax.interop.start import Described, Geometry, Values, write_start
from unimp_jax.interop.vqgan import import_vqgan
from unimp_jax.interop.weights import FirstRows, Renamed, Weights, locate, open_weights, read_json, reason, understood
from unimp_jax.model import (
    PARTS,
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    VisionConfig,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZERS = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""The files that a tokenizer may be read from."""
GEOMETRY = "unimp_geometry.json"
"""Beside exported weights: the geometry, where the format itself has no file for it."""


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Folders on disk, files, or ids of the Hugging Face hub."""

    language: str | None = None
    """A causal language model: GPT-NeoX, MPT or LLaMA; a folder in Hugging Face's form, or a GGUF file of a LLaMA."""
    vision: str | None = None
    """A CLIP model, or the vision tower of one, in Hugging Face's form."""
    idefics: str | None = None
    """A whole IdeficsForVisionText2Text, in Hugging Face's form."""
    open_flamingo: str | None = None
    """An OpenFlamingo checkpoint: a `.pt` or safetensors file, or a folder; full, or of the trained keys alone, in
    which case the language model and the vision tower have to be named as well."""
    tokenizer: str | None = None
    """Where it is not beside the language model."""
    heads: int = 8
    """Of OpenFlamingo's resampler and gated blocks, whose checkpoints do not tell."""
    vqgan: str | None = None
    """A VQGAN, alone: a VQModel of diffusers, or a checkpoint of taming-transformers (`.ckpt`, `.pt`)."""
    vqgan_image_size: int | None = None
    """Pixels, where such a checkpoint has no configuration (`.yaml`) beside it, and they are not 256."""


def import_weights(config: ImportConfig, folder: Path, shard_bytes: int = SHARD_BYTES) -> str:
    """Makes `folder` a start; returns what to tell the user of it.

    Raises:
      WeightsError: what is named cannot be read whole, or does not fit together. Nothing is left behind then.
    """
    refuse_existing(folder)
    if config.vqgan:
        if config.language or config.vision or config.idefics or config.open_flamingo:
            raise WeightsError("--vqgan is a model of its own; it goes with no other source")
        return import_vqgan(locate(config.vqgan), folder, config.vqgan_image_size)
    geometry, sources, described = gather(config)
    tokenizer = load_tokenizer(config)
    if tokenizer is not None and config.open_flamingo and geometry.decoder:
        add_flamingo_tokens(tokenizer, geometry.decoder)
    if tokenizer is not None and geometry.decoder:
        check_tokenizer(tokenizer, geometry.decoder, described)
    model = geometry.of_model(whole(geometry))
    matched = match(sources, model, geometry.parts)
    names = tuple(dict.fromkeys(source.weights.name for source in sources))
    with whole_folder(folder) as temporary:
        write_start(temporary, matched, model, Described(geometry, names, matched.unused), shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary / "tokenizer")
    return summary(folder, geometry, matched, tokenizer)


def whole(geometry: Geometry) -> ModelConfig:
    """A model in which the imported parts have a place; of the others only the fit matters."""
    decoder = geometry.decoder or DecoderConfig()
    gated = geometry.gated or GatedCrossAttentionConfig(every=decoder.layers)
    return ModelConfig(decoder=decoder, gated=gated)


def gather(config: ImportConfig) -> tuple[Geometry, list[Source], dict[str, Any]]:
    """(geometry, sources in rising order of precedence, the language model's config.json)."""
    if config.idefics and (config.language or config.vision or config.open_flamingo):
        raise WeightsError("--idefics is a whole model; it goes with no other source but --tokenizer")
    if config.idefics:
        return gather_idefics(locate(config.idefics))
    if not (config.language or config.vision or config.open_flamingo):
        raise WeightsError(
            "nothing to import: name --idefics, --vqgan, or any of --language, --vision and --open-flamingo"
        )
    geometry = Geometry()
    sources: list[Source] = []
    described: dict[str, Any] = {}
    tabulate: Tabulate | None = None
    if config.language:
        decoder, tabulate, weights, described = open_language(locate(config.language))
        geometry = dataclasses.replace(geometry, decoder=decoder)
        sources.append(Source(weights, tabulate(decoder)))
    if config.vision:
        tower, source = open_vision(locate(config.vision))
        geometry = dataclasses.replace(geometry, vision=tower)
        sources.append(source)
    if config.open_flamingo:
        return (*add_open_flamingo(locate(config.open_flamingo), config, geometry, sources, tabulate), described)
    return geometry, sources, described


def gather_idefics(path: Path) -> tuple[Geometry, list[Source], dict[str, Any]]:
    described = read_json(path / "config.json")
    model = understood(path, idefics.model_config, described)
    geometry = Geometry(model.vision, model.resampler, model.gated, model.decoder)
    return geometry, [idefics_source(path, model)], described


def idefics_source(path: Path, model: ModelConfig) -> Source:
    """The weights of a folder, looked at as those of an Idefics of this geometry."""
    inside = {"additional_fc": "additional_embedding"}
    weights = tied(open_weights(path), model.decoder, "lm_head.", "model.embed_tokens.", inside)
    return Source(weights, idefics.table(model))


def exported_values(path: Path, config: ModelConfig) -> Iterator[Values]:
    """All parameters of a model that was exported as an Idefics, read one array at a time as they are asked for.

    Raises:
      WeightsError: the weights cannot be read whole, or are not of this geometry.
    """
    matched = match([idefics_source(path, config)], config, PARTS)
    return (Values(name, (*index, *[0] * array.ndim), array) for (name, index), array in matched.arrays())


def tied(weights: Weights, decoder: DecoderConfig, head: str, table: str, inside: dict[str, str]) -> Weights:
    """Weights in which a head that repeats the embeddings goes by their name."""
    if not decoder.tie_embeddings or not any(key.startswith(head) for key in weights.keys()):  # noqa: SIM118
        return weights

    def rename(key: str) -> str:
        if not key.startswith(head):
            return key
        rest = key.removeprefix(head)
        for theirs, ours in inside.items():
            rest = rest.replace(theirs, ours)
        return table + rest

    return Renamed(weights, rename)


HEADS = {"gpt_neox": ("embed_out.", "gpt_neox.embed_in."), "llama": ("lm_head.", "model.embed_tokens.")}


def open_language(path: Path) -> tuple[DecoderConfig, Tabulate, Weights, dict[str, Any]]:
    weights: Weights
    if (path / "config.json").is_file():
        described, weights = read_json(path / "config.json"), open_weights(path)
    else:
        from unimp_jax.interop.gguf import GGUF

        opened = open_weights(path)
        if not isinstance(opened, GGUF):
            raise WeightsError(f"{path}: has no config.json, which says what language model it is")
        described, weights = understood(path, GGUF.config, opened), opened
    decoder, tabulate = understood(path, family, described)
    head, table = HEADS.get(described["model_type"], ("lm_head.", "transformer.wte."))
    return decoder, tabulate, tied(weights, decoder, head, table, {}), described


def open_vision(path: Path) -> tuple[VisionConfig, Source]:
    described, weights = read_json(path / "config.json"), open_weights(path)
    table = transformers_clip(vision_root(weights))
    return understood(path, vision_config, described), Source(weights, table)


def add_open_flamingo(
    path: Path, config: ImportConfig, geometry: Geometry, sources: list[Source], tabulate: Tabulate | None
) -> tuple[Geometry, list[Source]]:
    """What an OpenFlamingo checkpoint adds to, and replaces of, its language model and vision tower."""
    weights: Weights = Renamed(open_weights(path), open_flamingo.canonical)
    keys = set(weights.keys())
    beside = (path if path.is_dir() else path.parent) / GEOMETRY
    tabulate = tabulate or open_flamingo.tabulate_by_keys(keys)
    if beside.is_file():
        known = read_geometry(beside)
        geometry = Geometry(known.vision, known.resampler, known.gated, geometry.decoder or known.decoder)
    described = geometry.decoder
    if described is None:
        raise WeightsError(f"{path}: name its language model with --language (the checkpoint does not describe it)")
    if any(key.startswith(open_flamingo.VISION) for key in keys) and geometry.vision is None:
        raise WeightsError(f"{path}: name its vision tower with --vision (the checkpoint does not describe it)")
    if geometry.vision is None:
        raise WeightsError(f"{path}: has no vision tower; name it with --vision")
    if geometry.resampler is None or geometry.gated is None:
        geometry = dataclasses.replace(geometry, **inferred(weights, config.heads))
    decoder = dataclasses.replace(described, vocab_size=rows(weights, described, tabulate))
    weights = tied(weights, decoder, "lang_encoder.lm_head.", "lang_encoder.transformer.wte.", {})
    table: Table = open_flamingo.trained_table() + tabulate(decoder, open_flamingo.LANGUAGE, open_flamingo.LAYER)
    optional = [open_flamingo.LAYER.split("{")[0], "lang_encoder.gpt_neox.final", "lang_encoder.transformer.norm_f",
                "lang_encoder.transformer.ln_f", "lang_encoder.model.norm"]  # fmt: skip
    if any(key.startswith(open_flamingo.VISION) for key in keys):
        table = table + open_flamingo.vision_table(keys)
    # The language model's own tables have other rows, and the checkpoint's stand in their place. A head that was frozen
    # is not in the checkpoint: its rows are the first of the language model's, as their package left them.
    own = {e.ours[0] for e in table if e.theirs in keys}
    table = [e for e in table if e.ours[0] != "embeddings/base_head" or e.ours[0] in own]
    kept = [
        [e for e in source.table if not e.ours[0].startswith("embeddings/") or e.ours[0] not in own]
        for source in sources
    ]
    heads = [{e.theirs for e in entries if e.ours[0] == "embeddings/base_head"} for entries in kept]
    sources = [
        Source(FirstRows(source.weights, theirs, decoder.vocab_size), entries, source.optional)
        for source, entries, theirs in zip(sources, kept, heads, strict=True)
    ]
    checkpoint = Source(weights, table, tuple(optional) if config.language else ())
    return dataclasses.replace(geometry, decoder=decoder), [*sources, checkpoint]


def read_geometry(path: Path) -> ModelConfig:
    try:
        return pydantic.TypeAdapter(ModelConfig).validate_python(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def rows(weights: Weights, decoder: DecoderConfig, tabulate: Tabulate) -> int:
    """Tokens that the checkpoint's embeddings have."""
    key = tabulate(decoder, open_flamingo.LANGUAGE, open_flamingo.LAYER)[0].theirs
    if key not in set(weights.keys()):
        raise WeightsError(f"{weights.name}: lacks {key}, the embeddings")
    return weights.shape(key)[0]


def inferred(weights: Weights, heads: int) -> dict[str, Any]:
    """Resampler and gated blocks, from the shapes of their arrays.

    Raises:
      WeightsError: they are missing, or no such geometry is known.
    """
    keys = set(weights.keys())

    def numbered(pattern: str) -> list[int]:
        return sorted({int(found[1]) for key in keys if (found := re.match(pattern, key))})

    layers = numbered(r"perceiver\.layers\.(\d+)\.")
    blocks = numbered(r"lang_encoder\.gated_cross_attn_layers\.(\d+)\.")
    needed = ("perceiver.latents", "perceiver.layers.0.0.to_q.weight", "perceiver.layers.0.1.1.weight")
    if not layers or not blocks or not keys.issuperset(needed):
        raise WeightsError(f"{weights.name}: no OpenFlamingo checkpoint: it lacks a resampler or gated blocks")
    every = blocks[0] + 1
    if blocks != list(range(every - 1, blocks[-1] + 1, every)):
        raise WeightsError(f"{weights.name}: gated blocks stand before layers {blocks}, not before every n-th")
    block = f"lang_encoder.gated_cross_attn_layers.{blocks[0]}"

    def sizes(query: str, up: str) -> dict[str, Any]:
        (inner, _), (hidden, width) = weights.shape(query), weights.shape(up)
        if inner % heads:
            raise WeightsError(f"{weights.name}: {query} has {inner} rows, not a multiple of heads {heads}")
        return {"heads": heads, "head_dim": inner // heads, "mlp_ratio": hidden // width}

    return {
        "resampler": ResamplerConfig(
            layers=len(layers),
            latents=weights.shape("perceiver.latents")[0],
            **sizes("perceiver.layers.0.0.to_q.weight", "perceiver.layers.0.1.1.weight"),
        ),
        "gated": GatedCrossAttentionConfig(every=every, **sizes(f"{block}.attn.to_q.weight", f"{block}.ff.1.weight")),
    }


def load_tokenizer(config: ImportConfig) -> PreTrainedTokenizerBase | None:
    """The one that is named, or lies beside the language model; None where there is none.

    Raises:
      WeightsError: the one that is named, or lies there, cannot be read.
    """
    place = config.tokenizer or config.idefics or config.language or config.open_flamingo
    if place is None:
        return None
    path = locate(place)
    arguments: dict[str, Any] = {}
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "config.json").exists()):
        files = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))
        if len(files) == 1:
            path, arguments = files[0].parent, {"gguf_file": files[0].name}
    elif path.is_file():
        path = path.parent
    known = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not arguments and not any((path / name).exists() for name in known):
        if config.tokenizer:
            raise WeightsError(f"{path}: no tokenizer in it")
        return None
    if not arguments:
        for file in sorted({file for pattern in TOKENIZERS for file in path.glob(pattern)}):
            refuse_stand_in(file, "other")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **arguments)
    except Exception as error:  # of many kinds, by tokenizer
        raise WeightsError(f"{path}: the tokenizer cannot be read ({reason(error)})") from error


def add_flamingo_tokens(tokenizer: PreTrainedTokenizerBase, decoder: DecoderConfig) -> None:
    """The tokens that open-flamingo adds to a language model's tokenizer, in its order, where they are not in it.

    Raises:
      WeightsError: one of them gets the id of another token, as happens where ids have gaps.
    """
    before = {id: name for name, id in tokenizer.get_vocab().items()}
    names = [name for name in ("<|endofchunk|>", "<image>") if name not in tokenizer.get_vocab()]
    if names and len(tokenizer) + len(names) <= decoder.vocab_size:
        tokenizer.add_special_tokens({"additional_special_tokens": names})
    if tokenizer.pad_token is None and len(tokenizer) < decoder.vocab_size:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    for name, id in tokenizer.get_added_vocab().items():
        if before.get(id, name) != name:
            raise WeightsError(
                f"the tokenizer's ids have gaps, so that {name} gets the id {id}, which {before[id]!r} has: name a "
                "tokenizer that has the tokens of open-flamingo (<|endofchunk|> and <image>) with --tokenizer"
            )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, decoder: DecoderConfig, described: dict[str, Any]) -> None:
    """
    Raises:
      WeightsError: the tokenizer is of another model.
    """
    last = max(tokenizer.get_vocab().values(), default=0)
    rows = decoder.vocab_size + decoder.new_tokens
    if last >= rows:
        raise WeightsError(
            f"the tokenizer does not match the language model: it uses ids up to {last}, the model has {rows} tokens"
        )
    for name in ("bos_token_id", "eos_token_id"):
        expected, found = described.get(name), getattr(tokenizer, name)
        expected = expected if isinstance(expected, list) else [expected]
        if found is not None and None not in expected and found not in expected:
            raise WeightsError(
                f"the tokenizer does not match the language model: its {name} is {found}, the model's {expected[0]}"
            )


def summary(folder: Path, geometry: Geometry, matched: Match, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """What was read, and, pattern by pattern, what was not."""
    lines = [f"{folder}: {', '.join(geometry.parts)}"]
    for weights, filled in matched.fillings:
        lines.append(f"{weights.name}: {len(filled)} arrays read")
        for title, keys in (("unused", matched.unused), ("replaced by another source's", matched.replaced)):
            if keys[weights.name]:
                lines.append(f"  {title}: {', '.join(patterns(keys[weights.name]))}")
    if tokenizer is None and geometry.decoder is not None:
        lines.append("no tokenizer was found beside the weights; name one with --tokenizer, or when training")
    others = set(PARTS) - {"embeddings", *geometry.parts}
    if others:
        lines.append(f"left to training from random weights: {', '.join(sorted(others))}")
    return "\n".join(lines)
