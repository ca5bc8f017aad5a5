"""The paper's recipe with published models."""

from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from experiments.config import ExperimentConfig
from unimp_jax.model import presets
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.loop import LoopConfig

DESCRIPTIONS = {
    "openflamingo-3b": "CLIP ViT-L/14 and MPT-1B.",
    "openflamingo-4b": "CLIP ViT-L/14 and RedPajama-INCITE-3B.",
    "openflamingo-9b": "CLIP ViT-L/14 and MPT-7B.",
    "idefics-9b": "CLIP ViT-H/14 and LLaMA-7B.",
}


def as_published(name: str) -> ExperimentConfig:
    """Returns the paper's recipe with one of its models: resampler, gated blocks and embeddings are trained."""
    return ExperimentConfig(
        model=getattr(presets, name.replace("-", "_")),
        tasks=TaskConfig(full_items=5, id_items=0, history_targets="reconstruct", rated_history=False),
        loader=LoaderConfig(batch_size=64, threads=16),
        row_shape=RowShape(tokens=1024, images=24, answers=256),
        objective=ObjectiveConfig(chunk=256),  # all at once: the head's gradient crosses the mesh once
        loop=LoopConfig(steps=20_000, log_every=10, validate_every=1000, save_every=500),
    )
