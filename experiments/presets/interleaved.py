"""Recent language models with SigLIP 2, with images among the text tokens."""

import dataclasses

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
    "smolvlm-256m": "SigLIP base and SmolLM2-135M, images among the tokens as SmolVLM has them; all of it trains.",
    "qwen3-0.6b": "SigLIP 2 base and Qwen3-0.6B, images among the tokens; everything but the tower trains.",
    "qwen3-1.7b": "SigLIP 2 base and Qwen3-1.7B, images among the tokens; everything but the tower trains.",
    "qwen3-4b": "SigLIP 2 so400m and Qwen3-4B, images among the tokens; adapters of the decoder train: each of 16 "
    "devices holds 0.75 GiB of parameters and moments instead of 2.61.",
    "qwen3-8b": "SigLIP 2 so400m and Qwen3-8B, images among the tokens; adapters of the decoder train: each of 16 "
    "devices holds 1.22 GiB of parameters and moments instead of 4.95.",
}
LOW_RANK = AdapterConfig(rank=16, alpha=32.0)


def interleaved(name: str) -> ExperimentConfig:
    """Returns one of these models with the histories of the paper's recipe: five items of an example have images.

    Rows have 2,048 tokens for a tower with 64 tokens per image, and 4,096 for one with 256: three or four examples
    each. Decoders above two billion parameters are trained by low-rank adapters; towers are trained only if they are as
    small as SmolVLM's.
    """
    model: ModelConfig = getattr(presets, name.replace("-", "_").replace(".", "_"))
    large = model.decoder.width > 2048
    tower: tuple[Part, ...] = ("vision",) if model.decoder.width < 1024 else ()
    return ExperimentConfig(
        model=dataclasses.replace(model, adapters=LOW_RANK) if large else model,
        tasks=TaskConfig(full_items=5, id_items=0, history_targets="reconstruct", rated_history=False),
        loader=LoaderConfig(batch_size=64, threads=16),
        row_shape=RowShape(tokens=4096, images=14, answers=256)
        if large
        else RowShape(tokens=2048, images=24, answers=256),
        optimizer=OptimizerConfig(decay="matrices"),
        objective=ObjectiveConfig(chunk=256),
        training=TrainingConfig(trains=(*tower, "projector", "adapters" if large else "decoder", "embeddings")),
        loop=LoopConfig(steps=20_000, log_every=10, validate_every=1000, save_every=500),
    )
