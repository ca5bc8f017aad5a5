"""The Python API of a trained run that answers queries, and of a new run that is trained step by step."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from data_pipelines.object_store import make_path
from experiments.config import ExperimentConfig
from experiments.data import ExperimentData, sized_model
from experiments.evals import EVALS
from experiments.evals.config import GenerateConfig
from experiments.generate import pose
from experiments.init import initial_parameters, vocabulary_of_init, with_init_geometry
from experiments.parameters import Checkpoint
from experiments.request import Request
from experiments.run import ALL_DEVICES, open_to_ask
from experiments.step import compile_step, init_state, make_mesh_of, to_device
from unimp_jax.processes import wait_for_all
from unimp_jax.sharding import MeshConfig
from unimp_jax.training.step import StepMetrics


class TrainedRun:
    """A run, or its export by `unimp export`, with its model on the devices.

    Attributes:
      data: the data: `corpus`, `vocabulary`, `images` and the configuration as it is used here.
    """

    def __init__(self, folder: Path | str, checkpoint: Checkpoint = "best", *, mesh: MeshConfig = ALL_DEVICES):
        """Opens a folder.

        Args:
          checkpoint: of a run, the best by validation or the latest.

        Raises:
          DataError: the folder is neither, or its data is not prepared.
          WeightsError, CheckpointError: the weights cannot be read.
        """
        self.data, open_model = open_to_ask(make_path(folder), checkpoint, mesh=mesh)
        self.predictor = open_model()

    def recommend(self, history: Sequence[str | tuple[str, float]], k: int = 10) -> list[dict[str, Any]]:
        """Ranks the items that are not in a history.

        Args:
          history: item ids, or pairs of an id and its rating in stars, oldest first.

        Returns:
          A dict of `rank`, `item` (its id), `title` and `probability` per item, best first.

        Raises:
          DataError: an item is not in the catalogue, or the history is empty.
        """
        met = tuple((one, math.nan) if isinstance(one, str) else one for one in history)
        return self.answer(Request(history=met), GenerateConfig(k=k))["items"]

    def answer(self, request: Request, config: GenerateConfig = GenerateConfig()) -> dict[str, Any]:
        """Answers a query of any task, as `unimp generate --json` does.

        Raises:
          DataError: an item or the user does not exist, or another input of the task is missing.
        """
        data, query = pose(self.data, request)
        evaluation = EVALS[request.task]
        return evaluation.answer(data, self.predictor, query, config, evaluation.open(data, config))


class NewRun:
    """A model with new parameters, or those of `init_from`, that is trained on its source; nothing is written to disk.

    Attributes:
      config: the configuration, with the size of the vocabulary.
      state: trainable parameters, optimizer state and step.
    """

    def __init__(self, config: ExperimentConfig):
        """Loads the data and compiles the train step.

        Raises:
          DataError: the source is not prepared, or there is nothing to train on.
          ValueError: parts of the configuration do not fit one another, the data or the devices.
        """
        self._mesh, config = make_mesh_of(config), with_init_geometry(config)
        self.data = ExperimentData.load(config, vocabulary_of_init(config))
        self.config = sized_model(config, self.data.vocabulary, self.data.content.shape[1])
        self.data.check_training()
        with jax.set_mesh(self._mesh):
            parameters = initial_parameters(self.config, self._mesh, self.data)
            self.state, self._frozen = init_state(self.config, parameters.trainable, self._mesh), parameters.frozen
            self._step = compile_step(self.config, parameters, self.state, self._mesh)
        wait_for_all("the step is compiled")
        self._batches = self.data.training()

    def train_step(self) -> StepMetrics:
        """Trains on the next batch of the source's infinite stream."""
        batch = to_device(self._mesh)(next(self._batches).arrays)
        with jax.set_mesh(self._mesh):
            self.state, metrics = self._step(self.state, self._frozen, batch)
        return metrics
