"""The baselines SASRec, eSASRec and HSTU, trained with softmax cross entropy at every position.

The cross entropy is over the whole catalogue or over negatives sampled from it. There is no padding, and the learning
rate follows the used part of the budget, in steps or seconds, so that a short run ends with the same decay as a long
one.
"""

import dataclasses
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.atomic import atomic_file
from data_pipelines.corpus import Corpus
from experiments.baselines.ranker import padded_histories
from experiments.baselines.sasrec_model import Block, SASRec, SASRecModelConfig
from unimp_jax.compiling import draw

Rival = Literal["sasrec", "esasrec", "hstu"]


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """The defaults are the best of the few tried on movielens-1m's 512 validation users, in minutes on shared cores."""

    model: SASRecModelConfig = SASRecModelConfig()
    loss: Literal["full", "sampled"] = "full"
    """Softmax over the whole catalogue, or over the target item and `negatives` others."""
    negatives: int = 256
    """Number of negatives, drawn uniformly for each row of a batch and shared by its positions."""
    logq_correction: bool = False
    """Weight the negatives so that they represent the whole catalogue; the published eSASRec and HSTU do not."""
    steps: int | None = None
    """Maximum number of steps."""
    seconds: float | None = 300.0
    """Maximum time for training alone; the training ends with the first of the two limits."""
    clock: Literal["wall", "processor"] = "wall"
    """Count the seconds that pass, or those that the processor works for this process, where devices are CPUs: then
    other programs on the machine do not shorten the training."""
    batch_size: int = 16
    """Rows of `max_length` transitions per batch."""
    learning_rate: float = 4e-3
    """Peak learning rate, reached after `warmup` and followed by a cosine decay to 0."""
    warmup: float = 0.02
    """Part of the budget for the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay, multiplied by the learning rate, on all matrices."""
    validations: int = 10
    """Number of validations by NDCG@10 (seen items filtered), evenly spread over the budget."""
    patience: int | None = None
    """Number of validations without improvement after which the training ends; None: it does not end early."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("steps and seconds are both None; one of them must limit the training")
        if (self.steps is not None and self.steps < 1) or (self.seconds is not None and self.seconds <= 0):
            raise ValueError(f"steps {self.steps} and seconds {self.seconds} must be above 0 or None")
        if self.batch_size < 1 or not 0 <= self.seed < 2**32 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"batch_size {self.batch_size} must be 1 or more, seed {self.seed} from 0 to 2^32 - 1, warmup below 1"
            )
        if self.validations < 1:
            raise ValueError(f"validations is {self.validations} and must be at least 1")
        if self.negatives < 1 or (self.patience is not None and self.patience < 1):
            raise ValueError(f"negatives {self.negatives} and patience {self.patience} must be 1 or more")


BLOCKS: dict[Rival, Block] = {"sasrec": "sasrec", "esasrec": "ligr", "hstu": "hstu"}
NAMES = {"sasrec": "SASRec", "ligr": "eSASRec", "hstu": "HSTU"}
"""Block -> name of the ranker."""


def rival_config(rival: Rival, config: SASRecConfig) -> SASRecConfig:
    """Adapts SASRec's configuration to a rival: its block and, except for SASRec, its authors' sampled loss."""
    if rival == "sasrec":
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, block=BLOCKS[rival]), loss="sampled")


class SASRecRanker:
    """Trained parameters as a `Ranker`, with the training curve.

    Attributes:
      curve: one record per validation: step, seconds, learning_rate, loss (mean since the previous one), ndcg10.
    """

    def __init__(self, corpus: Corpus, config: SASRecConfig):
        self.name, self.corpus, self.config = NAMES[config.model.block], corpus, config

        def make() -> SASRec:
            return SASRec(config.model, corpus.num_items, rngs=nnx.Rngs(config.seed))

        self.graph, self.parameters = nnx.graphdef(nnx.eval_shape(make)), draw(lambda: nnx.state(make(), nnx.Param))
        self.curve: list[dict[str, float]] = []
        self._score = jax.jit(self._scores)

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        length = self.config.model.max_length
        items, times = (
            padded_histories(self.corpus, users, positions, length, values)
            for values in (self.corpus.items, self.corpus.times)
        )
        last = np.minimum(positions, length) - 1
        return np.asarray(self._score(self.parameters, np.maximum(items, 0), times, last))

    def _scores(self, parameters: Any, items_MT: jax.Array, times_MT: jax.Array, last_M: jax.Array) -> jax.Array:
        model = nnx.merge(self.graph, parameters)
        steps_MT = jnp.broadcast_to(jnp.arange(items_MT.shape[1]), items_MT.shape)
        hidden_MTD = model(items_MT, jnp.zeros_like(items_MT), steps_MT, times_MT)
        return jnp.einsum("md,id->mi", hidden_MTD[jnp.arange(len(last_M)), last_M], model.items[...])

    def save(self, path: Path) -> None:
        """Writes an .npz file of the parameters and `trained` as JSON, whole or not at all."""
        leaves = jax.tree_util.tree_leaves_with_path(self.parameters)
        arrays: dict[str, Any] = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
        with atomic_file(path, shared=True) as partial, partial.open("wb") as file:
            np.savez(file, trained=np.array(json.dumps(self.trained)), **arrays)

    def load(self, path: Path) -> bool:
        """Takes the parameters and the curve of a file written by `save`.

        Returns:
          Whether the file holds a ranker of the same configuration and interactions; otherwise nothing changes.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                saved = json.loads(str(arrays["trained"]))
                parameters = jax.tree_util.tree_map_with_path(
                    lambda path, leaf: jnp.asarray(arrays[jax.tree_util.keystr(path)]).reshape(leaf.shape),
                    self.parameters,
                )
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # no file, or a damaged one
            return False
        if saved | {"curve": []} != self.trained | {"curve": []}:
            return False
        self.parameters, self.curve = parameters, saved["curve"]
        return True

    @property
    def trained(self) -> dict[str, Any]:
        """The training as JSON: its configuration, a checksum of the interactions, and the curve."""
        checksum = 0
        for column in (self.corpus.offsets, self.corpus.items, self.corpus.times, self.corpus.splits):
            checksum = zlib.crc32(np.ascontiguousarray(column).data, checksum)  # without a copy of the interactions
        return {"config": dataclasses.asdict(self.config), "interactions": checksum, "curve": self.curve}
