"""A run's folder, opened again to use its model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax

from data_pipelines.errors import DataError
from data_pipelines.loader import Share
from experiments.ask import Model
from experiments.config import load_config
from experiments.data import ExperimentData
from experiments.parameters import init_parameters
from experiments.train import init_state, optimizer_of, to_device
from unimp_jax.evaluation.harness import Examiner
from unimp_jax.sharding import make_mesh
from unimp_jax.training.checkpoint import Checkpoints, abstract
from unimp_jax.training.frozen import load_frozen
from unimp_jax.training.log import read_log

Checkpoint = Literal["best", "latest"]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What to say of a checkpoint."""

    step: int
    described: dict[str, Any]


def open_model(folder: Path, checkpoint: Checkpoint) -> tuple[ExperimentData, Model, Facts]:
    """The data, the model ready to be asked, and what to say of it.

    Raises:
      DataError: the folder holds no run, or one without a whole checkpoint.
    """
    config = load_config(folder / "config.json")
    data = ExperimentData.load(config, folder / "vocabulary")
    mesh = make_mesh(config.mesh)
    parameters = init_parameters(config, mesh)
    state = init_state(parameters.trainable, optimizer_of(config))
    with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        step = checkpoints.best() if checkpoint == "best" else checkpoints.latest()
        if step is None:
            raise DataError(f"{folder} has no whole checkpoint yet: run `unimp train` on it first")
        state, _ = checkpoints.restore(step, abstract(state))
    frozen = load_frozen(folder / "frozen", abstract(parameters.frozen))
    examiner = Examiner(parameters.graph, mesh, to_device(mesh))
    share = Share(jax.process_index(), jax.process_count())
    lines = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "train"]
    described = {
        "parameters that train": f"{sum(x.size for x in jax.tree.leaves(parameters.trainable)):,}",
        "frozen parameters": f"{sum(x.size for x in jax.tree.leaves(parameters.frozen)):,}",
        "people": f"{data.corpus.num_users:,}",
        "items": f"{data.corpus.num_items:,}",
        "interactions": f"{len(data.corpus.items):,}",
        "seed": config.seed,
    }
    if lines:
        described |= {
            "token slots filled": f"{lines[-1]['fill']:.1%}",
            "tokens a second": f"{lines[-1]['tokens_per_second']:,.0f}",
            "share of peak": f"{lines[-1]['mfu']:.1%}",
            "waiting for data": f"{lines[-1]['waiting_share']:.2%}",
        }
    return data, Model(examiner, (state.trainable, frozen), share), Facts(step, described)
