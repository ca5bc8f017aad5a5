"""Published models: the paper's recipe, and recent language models with images among the text tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from experiments.config import ExperimentConfig, TrainingConfig
from unimp_jax.model import ModelConfig, Part, presets
from unimp_jax.model.adapters import AdapterConfig
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

DESCRIPTIONS = {
    "openflamingo-3b": "CLIP ViT-L/14 and MPT-1B.",
    "openflamingo-4b": "CLIP ViT-L/14 and RedPajama-INCITE-3B.",
    "openflamingo-9b": "CLIP ViT-L/14 and MPT-7B.",
    "idefics-9b": "CLIP ViT-H/14 and LLaMA-7B.",
    "smolvlm-256m": "SigLIP base and SmolLM2-135M, images among the tokens as SmolVLM has them; all of it trains.",
    "qwen3-0.6b": "SigLIP 2 base and Qwen3-0.6B, images among the tokens; everything but the tower trains.",
    "qwen3-1.7b": "SigLIP 2 base and Qwen3-1.7B, images among the tokens; everything but the tower trains.",
    "qwen3-4b": "SigLIP 2 so400m and Qwen3-4B, images among the tokens; adapters of the decoder train: each of 16 "
    "devices holds 0.75 GiB of parameters and moments instead of 2.61.",
    "qwen3-8b": "SigLIP 2 so400m and Qwen3-8B, images among the tokens; adapters of the decoder train: each of 16 "
    "devices holds 1.22 GiB of parameters and moments instead of 4.95.",
}
LOW_RANK = AdapterConfig(rank=16, alpha=32.0)


def published(name: str) -> ExperimentConfig:
    """Returns a preset with the histories of the paper's recipe: five items of an example have images.

    With cross-attention, resampler, gated blocks and embeddings are trained. With images among the tokens, rows have
    2,048 tokens for a tower with 64 tokens per image, and 4,096 for one with 256: three or four examples each. Decoders
    above two billion parameters are then trained by low-rank adapters, and towers only if they are as small as
    SmolVLM's.
    """
    model: ModelConfig = getattr(presets, name.replace("-", "_").replace(".", "_"))
    own: dict[str, Any] = {"model": model, "row_shape": RowShape(tokens=1024, images=24)}
    if model.interleaved:
        large = model.decoder.width > 2048
        tower: tuple[Part, ...] = ("vision",) if model.decoder.width < 1024 else ()
        own = {
            "model": dataclasses.replace(model, adapters=LOW_RANK) if large else model,
            "row_shape": RowShape(tokens=4096, images=14) if large else RowShape(tokens=2048, images=24),
            "optimizer": OptimizerConfig(decay="matrices"),
            "training": TrainingConfig(trains=(*tower, "projector", "adapters" if large else "decoder", "embeddings")),
        }
    return ExperimentConfig(
        tasks=TaskConfig(full_items=5, id_items=0, history_targets="reconstruct", rated_history=False),
        loader=LoaderConfig(batch_size=64, threads=16),
        objective=ObjectiveConfig(chunk=256),  # all at once: the head's gradient crosses the mesh once
        loop=LoopConfig(steps=20_000, log_every=10, validate_every=1000, save_every=500),
        **own,
    )


PRESETS = {name: published(name) for name in DESCRIPTIONS}
