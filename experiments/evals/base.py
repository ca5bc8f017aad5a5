"""What is made of a task on this side of the wall: how held-out questions are asked, measured and shown."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import grain
import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.loader import ProcessShard, QuestionBatch
from data_pipelines.tasks import Query
from experiments.baselines.ranker import Ranker
from experiments.data import ExperimentData
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evals.queries import EvaluationQueries
from experiments.memory import Memory
from experiments.request import Request
from experiments.results import ImageSample, Sample
from unimp_jax.evaluation.metrics import Means
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.sharding import row_shards

OURS = "UniMP"
ANSWER_TOKENS = 16
"""So many tokens are asked about at least, so that answers of different kinds share one compiled program."""
PerUser = dict[str, np.ndarray]
Formulas = Mapping[str, Callable[[Means], np.ndarray]]


class TooFewError(DataError):
    """There are too few questions, or too few images, to measure a task by."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One table: a task's questions and every model's answers.

    Attributes:
      note: what was asked, in a sentence or two.
      metrics: for each model, values of its users by name, of whose means metrics are made.
      formulas: for each model, what makes metrics of these means; a model that is not there is described by the means.
      answers: columns, one value a question: who was asked what, and what was answered.
      larger_is_better: of all metrics.
    """

    note: str
    metrics: dict[str, PerUser]
    answers: dict[str, Any]
    formulas: Callable[[PerUser], Formulas] | None = None
    larger_is_better: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What a task is evaluated with.

    Attributes:
      questions: the held-out ones.
      next_item: the model alone, as a ranker by how probable items are to come next.
      rankers: baselines that rank the catalogue; none where no task needs them.
      with_content: the run's model with rows of the content of more tokens (`ExperimentData.content` of other data).
      opened: what `TaskEval.open` opened.
      memory: what was chosen to stand beside the model.
    """

    data: ExperimentData
    predictor: Predictor
    questions: EvaluationQueries
    next_item: Ranker
    rankers: Sequence[Ranker]
    config: EvaluationConfig
    with_content: Callable[[np.ndarray], Predictor]
    opened: Any = None
    memory: Memory = Memory()


@dataclasses.dataclass(frozen=True, eq=False)
class Answered:
    """What came of a task.

    Attributes:
      outcomes: tables by name, the first that of the task.
      samples: users whose recommendations a report shows.
      save_images: writes images of some users into the folder of the evaluation.
    """

    outcomes: dict[str, Outcome]
    samples: tuple[Sample, ...] = ()
    save_images: Callable[[Path], tuple[ImageSample, ...]] | None = None


class TaskEval(abc.ABC):
    """How a task is evaluated, and how `unimp generate` answers it. `experiments.evals.register` makes one known."""

    task: ClassVar[str]
    """The name of the task in `data_pipelines.tasks`."""
    needs_rankers: ClassVar[bool] = False
    """Whether baselines that rank the catalogue answer it."""
    needs: ClassVar[tuple[str, str]] = ("", "")
    """The option of `unimp generate` that the task cannot do without, and what it means."""

    def open(self, data: ExperimentData, config: EvaluationConfig | GenerateConfig) -> Any:
        """What is needed beside the model; it is opened, or found missing, before any weights are read."""
        return None

    def quality(self, corpus: Corpus, users: np.ndarray, positions: np.ndarray) -> Callable[[np.ndarray], float]:
        """What says how well the task is answered by how probable each item is to come next: larger is better. Tasks
        that need rankers have it, and a memory is chosen by it.

        Args:
          users, positions: int32 [M], moments of histories.

        Returns:
          A function of log-probabilities of all items to come next, float32 [M, I]; what does not depend on them is
          computed before.
        """
        raise TypeError(f"{self.task} is not answered by how probable items are to come next")

    @abc.abstractmethod
    def evaluate(self, setting: Setting) -> Answered:
        """Asks the model and the baselines all held-out questions.

        Raises:
          TooFewError: there are too few of them to measure by.
        """

    def query(self, data: ExperimentData, request: Request, query: Query, item_of: Callable[[str], int]) -> Query:
        """The open question about a user of whom all is known that `query` says, with what the request adds.

        Args:
          item_of: from an item's id to its number; raises DataError where there is none.
        """
        return query

    @abc.abstractmethod
    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        """The answer to an open question, as fields of a JSON object."""

    @abc.abstractmethod
    def show(self, answer: dict[str, Any]) -> list[str]:
        """An answer as lines for a terminal."""


def asked(corpus: Corpus, queries: Sequence[Query]) -> dict[str, Any]:
    """Columns: who was asked, and about which item."""
    return {
        "user": [corpus.user_ids[query.user] for query in queries],
        "position": [query.position for query in queries],
        "item": [corpus.item_ids[query.right[0]] for query in queries],
    }


def titled(corpus: Corpus, items: Sequence[int]) -> list[dict[str, Any]]:
    """Ids and titles of items."""
    return [{"item": corpus.item_ids[item], "title": corpus.titles[item]} for item in items]


def moments(queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
    """(users, positions) as baselines take them, int32 [P] each."""
    return np.array([q.user for q in queries], np.int32), np.array([q.position for q in queries], np.int32)


def prompt_batches(
    data: ExperimentData,
    predictor: Predictor,
    queries: Sequence[Query],
    *,
    begun: Sequence[tuple[int, ...]] | None = None,
    tight: bool = False,
) -> grain.DatasetIterator[QuestionBatch]:
    """This process's shard of batches of prompts.

    Args:
      begun: of each question, the tokens that its answer begins with.
      tight: batches are no larger than these prompts need.
    """
    prompts = data.writer.write_all(queries, ask=True, begun=begun)
    shard = ProcessShard(*row_shards(predictor.mesh))
    return data.questions(prompts, shard, tight=tight, with_images=predictor.needs_images)


def next_token(
    data: ExperimentData,
    predictor: Predictor,
    queries: Sequence[Query],
    tokens: np.ndarray,
    begun: Sequence[tuple[int, ...]] | None = None,
) -> np.ndarray:
    """Probabilities of `tokens` (int [n]) among themselves, behind each question: float32 [P, n]."""
    batches = prompt_batches(data, predictor, queries, begun=begun)
    padded = np.resize(tokens, max(len(tokens), ANSWER_TOKENS))
    logs = predictor.next_token(batches, padded, len(queries))[:, : len(tokens)]
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
