"""`unimp export`: writes a run as a folder that stock transformers, vLLM or open-flamingo loads.

The folder has the weights, the tokenizer, image and generation settings, and a model card.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.tasks.base import Split
from data_pipelines.tasks.examples import Example
from data_pipelines.tasks.queries import held_out_queries
from data_pipelines.vocabulary import GLOBAL, Vocabulary
from data_pipelines.whole_tokenizer import whole_tokenizer
from experiments.config import load_config, save_config
from experiments.data import ExperimentData
from experiments.parameters import Checkpoint
from experiments.path_options import PathOrURL
from experiments.results import Evaluation, load_evaluation
from experiments.run import ALL_DEVICES, EXPERIMENT, Facts, open_model, without_content
from experiments.vqgan.run import is_vqgan_run, open_vqgan
from unimp_jax.interop import idefics, llava, open_flamingo, smolvlm
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import GEOMETRY
from unimp_jax.interop.layout import Table, WeightsError
from unimp_jax.interop.shards import SHARD_BYTES, refuse_existing, whole_folder, write_json
from unimp_jax.interop.vision import last_norm
from unimp_jax.interop.vqgan import write_vqgan
from unimp_jax.model import ModelConfig
from unimp_jax.sharding import MeshConfig

Format = Literal["idefics", "llava", "smolvlm", "open_flamingo"]
PACKAGES = {"idefics": idefics, "llava": llava, "smolvlm": smolvlm, "open_flamingo": open_flamingo}
LOADS = {
    "idefics": "IdeficsForVisionText2Text and AutoProcessor",
    "llava": "LlavaForConditionalGeneration and AutoProcessor, or vLLM",
    "smolvlm": "SmolVLMForConditionalGeneration and AutoProcessor, or vLLM",
    "open_flamingo": "open-flamingo 2.0.1",
}

SPLITS: tuple[Split, ...] = ("test", "validation")
"""The model card shows a prompt and the metrics of the first of these splits that exists."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What is written."""

    format: Format = "idefics"
    """Hugging Face's IdeficsForVisionText2Text; its LlavaForConditionalGeneration (projector mlp) or
    SmolVLMForConditionalGeneration (pixel_shuffle) if fusion is interleaved; or open-flamingo's state dict."""
    checkpoint: Checkpoint = "best"
    """The best checkpoint by validation, or the latest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights."""
    shard_gigabytes: float = SHARD_BYTES / 10**9
    """Maximum size of a weight file, unless it holds a single larger array."""
    mesh: MeshConfig = ALL_DEVICES
    """The mesh of the devices available here, independent of the one used in training."""


def export_command(
    run: tyro.conf.Positional[PathOrURL],
    folder: tyro.conf.Positional[PathOrURL],
    config: Annotated[ExportConfig, tyro.conf.arg(name="")],
) -> None:
    """Write a run as a folder that other programs can load: transformers, vLLM or open-flamingo; diffusers for a VQGAN.

    Args:
      run: the run folder.
      folder: the folder to create.
    """
    if is_vqgan_run(run):
        write_vqgan(folder, open_vqgan(run, config.checkpoint))
        print(f"{folder}: the VQGAN of {run}, for diffusers' VQModel")
    else:
        print(export_run(run, folder, config))


def export_run(run: Path, folder: Path, config: ExportConfig) -> str:
    """Writes the exported folder atomically, and returns a line about it for the user. Raises WeightsError if the
    format does not support the geometry, the folder exists or the disk is full; DataError if `run` is not a run
    folder."""
    if not 0 < config.shard_gigabytes < math.inf:
        raise DataError(f"shard_gigabytes {config.shard_gigabytes} must be above 0 and finite")
    refuse_existing(folder)
    data, model, facts = open_model(run, config.checkpoint, config.mesh)
    geometry, parameters = model.model().config, named(*model.parameters)
    package, described = PACKAGES[config.format], dict[str, Any]()
    if config.format != "idefics":
        geometry, parameters = folded(geometry, parameters)
    if config.format == "open_flamingo":
        open_flamingo.refuse(geometry)
        tabulate = open_flamingo.tabulate_by_config(geometry)
        table: Table = open_flamingo.table(geometry, tabulate, open_flamingo.vision_table())
    else:
        described, table = described_whole(geometry, data, config), package.table(geometry)
    with whole_folder(folder) as temporary:
        shard_bytes = int(config.shard_gigabytes * 10**9)
        unread = last_norm(package.LAST_NORM, geometry.vision)
        write_weights(temporary, parameters, table, unread=unread, dtype=config.dtype, shard_bytes=shard_bytes)
        whole_tokenizer(data.vocabulary).save_pretrained(temporary)
        write_settings(temporary, data, config.format)
        if described:
            write_json(temporary / "config.json", described)
        if config.format == "idefics":
            data.vocabulary.save(temporary / EXPERIMENT / "vocabulary")  # also read by `unimp generate`
            data.save_fingerprint(temporary / EXPERIMENT)
            saved = without_content(dataclasses.replace(load_config(run / "config.json"), init_from=None))
            save_config(saved, temporary / EXPERIMENT / "config.json")
        if config.format == "open_flamingo":
            dumped = pydantic.TypeAdapter(ModelConfig).dump_python(geometry, mode="json")
            write_json(temporary / GEOMETRY, dumped)
        (temporary / "README.md").write_text(card(run, folder.name, data, facts, config), encoding="utf-8")
    return f"{folder}: step {facts.step} of {run}, for {LOADS[config.format]}; how to load it: {folder / 'README.md'}"


def described_whole(geometry: ModelConfig, data: ExperimentData, config: ExportConfig) -> dict[str, Any]:
    """Returns the `config.json` of a model for transformers. Raises WeightsError if the format does not support the
    geometry, or its processor writes other tokens around images than the vocabulary has."""
    package, vocabulary = PACKAGES[config.format], data.vocabulary
    described = package.described_as(geometry) | token_ids(vocabulary) | {"dtype": config.dtype}
    if geometry.interleaved:
        described[package.IMAGE_ID] = vocabulary.image
    elif GLOBAL in vocabulary.tokenizer.get_added_vocab():
        raise WeightsError(f"the processor of Idefics does not write {GLOBAL}, which the tokenizer of this run has")
    text = described.get("text_config", described)
    text |= token_ids(vocabulary) | {"max_position_embeddings": data.config.row_shape.tokens}
    return described


def folded(geometry: ModelConfig, parameters: dict[str, jax.Array]) -> tuple[ModelConfig, dict[str, jax.Array]]:
    """Moves new tokens to the end of the base tables, for formats that have no separate table for them."""
    decoder, parameters = geometry.decoder, dict(parameters)
    for base, new in (("embeddings/base", "embeddings/new"), ("embeddings/base_head", "embeddings/new_head")):
        if new in parameters:
            parameters[base] = jnp.concatenate([parameters[base], parameters.pop(new)])
    decoder = dataclasses.replace(decoder, vocab_size=decoder.vocab_size + decoder.new_tokens, new_tokens=0)
    return dataclasses.replace(geometry, decoder=decoder), parameters


def token_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Returns the ids of the special tokens under transformers' names."""
    return {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad}


def write_settings(folder: Path, data: ExperimentData, format: Format) -> None:
    """Writes the settings of image preprocessing and of answer generation."""
    vision = data.config.model.vision
    size, (mean, deviation) = vision.image_size, vision.mean_and_deviation
    images: dict[str, Any] = {
        "image_mean": [float(f"{x:.8f}") for x in mean],
        "image_std": [float(f"{x:.8f}") for x in deviation],
    }
    if format == "idefics":
        images |= {
            "image_processor_type": "IdeficsImageProcessor",
            "processor_class": "IdeficsProcessor",
            "image_size": size,
            "image_num_channels": 3,
        }
    elif format == "smolvlm":
        images |= {
            "image_processor_type": "SmolVLMImageProcessor",
            "do_image_splitting": False,
            "size": {"longest_edge": size},
            "max_image_size": {"longest_edge": size},
            "resample": int(Image.Resampling.BICUBIC),
        }
    else:
        crops = data.config.images.fit == "crop"
        images |= {
            "image_processor_type": "CLIPImageProcessor",
            "do_center_crop": crops,
            "crop_size": {"height": size, "width": size},
            "size": {"shortest_edge": size} if crops else {"height": size, "width": size},
        }
    if data.config.model.interleaved:
        processor = PACKAGES[format].processor(data.config.model)
        images["processor_class"] = processor["processor_class"]
        write_json(folder / "processor_config.json", processor)
    write_json(folder / "preprocessor_config.json", images)
    longest = max(64, data.config.tasks.explanation_words * 4)
    write_json(folder / "generation_config.json", token_ids(data.vocabulary) | {"max_new_tokens": longest})


def prompt_parts(vocabulary: Vocabulary, tokens: list[int]) -> list[str | None]:
    """Returns a prompt as a processor takes it: texts, and None for each image; it adds the first token itself."""
    assert tokens[0] == vocabulary.bos
    joint = tuple(vocabulary.image_marker)
    parts: list[str | None] = []
    for is_image, group in itertools.groupby(tokens[1:], lambda token: token in joint):
        run = list(group)
        parts += [None] * run.count(vocabulary.image) if is_image else [vocabulary.text(run)]
    return parts


def prompt_text(vocabulary: Vocabulary, example: Example, model: ModelConfig) -> str:
    """Returns a prompt as the processors of LLaVA and SmolVLM take it: both repeat each `<image>`, and SmolVLM's also
    writes the tokens around it."""
    before = behind = 0
    if model.projector.kind == "pixel_shuffle":
        before = vocabulary.image_marker.index(vocabulary.image)
        behind = len(vocabulary.image_marker) - before - 1
    more = example.image_positions[:, None] + np.r_[-before:0, 1 : model.image_tokens + behind]
    return vocabulary.text(np.delete(example.tokens, more.ravel()).tolist())


def card(run: Path, name: str, data: ExperimentData, facts: Facts, config: ExportConfig) -> str:
    """Returns the model card in Markdown: data, steps, metrics, how to load the model and how to query it."""
    files = [run / "evaluation" / f"{split}.json" for split in SPLITS]
    evaluated: Evaluation | None = next((load_evaluation(file) for file in files if file.exists()), None)
    held_out = (query for split in SPLITS for query in held_out_queries(data.corpus, split, "recommendation"))
    query = next(held_out, None)
    example = data.writer.write(query, ask=True) if query else None
    if data.config.model.interleaved:
        shown = [repr(prompt_text(data.vocabulary, example, data.config.model))] if example else []
    else:
        parts = prompt_parts(data.vocabulary, example.tokens.tolist()) if example else []
        shown = [
            f"images[{sum(p is None for p in parts[:n])}]" if part is None else repr(part)
            for n, part in enumerate(parts)
        ]
    # The templates and the metrics are our own and the output is Markdown: nothing needs escaping.
    loader = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=False)
    return loader.get_template("model_card.md.jinja").render(
        name=name,
        format=config.format,
        source=data.config.data.source,
        steps=facts.step,
        facts=facts.described,
        split=evaluated.split if evaluated else SPLITS[0],
        tables=evaluated.tables if evaluated and evaluated.step == facts.step else (),
        prompt=shown,
        depth=data.vocabulary.depth,
        row_tokens=data.config.row_shape.tokens,
        row_images=data.config.row_shape.images,
        items=len(data.vocabulary.items),
        tokens=data.vocabulary.size,
        images=data.config.images.fit,
        every=data.config.model.gated.every,
    )
