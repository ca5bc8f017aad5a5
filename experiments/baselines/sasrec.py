"""SASRec trained with softmax cross entropy over the whole catalogue at every position: the rival to beat.

No negatives are sampled (the weakness of most published SASRec metrics), no slot is padding, and the learning rate
follows the part of the budget that is spent, be it steps or seconds, so a short run ends as annealed as a long one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.corpus import Corpus
from experiments.baselines.ranker import padded_histories
from experiments.baselines.sasrec_model import SASRec, SASRecModelConfig


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """The defaults are the best of the few tried on movielens-1m's 512 validation users, in minutes on shared cores."""

    model: SASRecModelConfig = SASRecModelConfig()
    steps: int | None = None
    """End after so many steps, …"""
    seconds: float | None = 300.0
    """… or after so much time, validation included and compilation not, whichever comes first."""
    batch_size: int = 16
    """Rows of `max_length` transitions in a batch."""
    learning_rate: float = 4e-3
    """Peak, reached after `warmup` and followed by a cosine down to 0."""
    warmup: float = 0.02
    """Part of the budget."""
    weight_decay: float = 0.01
    """Decoupled, times the rate, on all matrices."""
    validations: int = 10
    """So often, evenly spread over the budget, is NDCG@10 (seen filtered) of the validation users looked at."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("steps and seconds are both None: one must end the training")
        if (self.steps is not None and self.steps < 1) or (self.seconds is not None and self.seconds <= 0):
            raise ValueError(f"steps {self.steps} and seconds {self.seconds}, where they are given, must be above 0")
        if self.batch_size < 1 or self.seed < 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"batch_size {self.batch_size} must be 1 or more, seed {self.seed} 0 or more, warmup below 1"
            )
        if self.validations < 1:
            raise ValueError(f"validations is {self.validations}: at least the end must be validated")


class SASRecRanker:
    """Trained parameters as a `Ranker`, with how they came about.

    Attributes:
      curve: one record a validation: step, seconds, epochs, learning_rate, loss (mean since the last one), ndcg10.
    """

    name = "SASRec"

    def __init__(self, corpus: Corpus, config: SASRecConfig):
        self.corpus, self.config = corpus, config
        model = SASRec(config.model, corpus.num_items, rngs=nnx.Rngs(config.seed))
        self.graph, self.parameters = nnx.split(model, nnx.Param)
        self.curve: list[dict[str, float]] = []
        self._score = jax.jit(self._scores)

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        items = padded_histories(self.corpus, users, positions, self.config.model.max_length)
        last = np.minimum(positions, self.config.model.max_length) - 1
        return np.asarray(self._score(self.parameters, np.maximum(items, 0), last))

    def _scores(self, parameters: Any, items_MT: jax.Array, last_M: jax.Array) -> jax.Array:
        model = nnx.merge(self.graph, parameters)
        steps_MT = jnp.broadcast_to(jnp.arange(items_MT.shape[1]), items_MT.shape)
        hidden_MTD = model(items_MT, jnp.zeros_like(items_MT), steps_MT)
        return jnp.einsum("md,id->mi", hidden_MTD[jnp.arange(len(last_M)), last_M], model.items[...])

    def save(self, folder: Path) -> None:
        """Writes config.json (with the seed), curve.jsonl and parameters.npz."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=1), encoding="utf-8")
        lines = [json.dumps(record) + "\n" for record in self.curve]
        (folder / "curve.jsonl").write_text("".join(lines), encoding="utf-8")
        leaves = jax.tree_util.tree_leaves_with_path(self.parameters)
        np.savez(folder / "parameters.npz", **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
